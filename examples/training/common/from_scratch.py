"""Trains a small decoder from scratch on planted facts with a given attention, with the same attention that selects at
random, or with dense attention, and writes what was measured."""
import argparse
import json
import math
import os
import random
import time

import torch
import torch.nn.functional as F

import gguf
import planted
from decoder import Decoder, Dense
from rope import rotate


def parser(doc):
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True, help="folder")
    p.add_argument("--select", choices=["learned", "random", "dense"], default="learned",
                   help="random: the same model whose selection is drawn anew at every step, at the same rate")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--layers", type=int, default=3)
    p.add_argument("--width", type=int, default=128)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--kv-heads", type=int, default=2)
    p.add_argument("--ffn", type=int, default=256)
    p.add_argument("--rope-base", type=float, default=10000)
    p.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512],
                   help="tokens of a sequence, growing over the first 60 %% of the steps")
    p.add_argument("--tokens", type=int, default=8192, help="a step")
    p.add_argument("--steps", type=int, default=5000)
    p.add_argument("--seconds", type=float, default=1e9, help="ends the training earlier, rate and lengths with it")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--explore", type=float, default=0,
                   help="share of the training in which steps select at random, ever fewer of them: what the selection would leave out "
                        "has a gradient too")
    p.add_argument("--tests", type=int, default=1024, help="sequences of the report, of the last length")
    p.add_argument("--device", default="cuda")
    return p


def length_at(lengths, progress):
    return lengths[min(len(lengths) - 1, int(progress / 0.6 * (len(lengths) - 1)))]


def answers(model, ids, asked):
    """Logits at the questions' names, and what should follow them."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        logits = model(ids, asked)
    return logits.float(), ids[:, asked + 1]


@torch.no_grad()
def evaluate(model, a, length):
    """Share of the answers that are right, and of the causal pairs that were read, a mean over layers and heads."""
    generator = torch.Generator(a.device).manual_seed(10 ** 6 + a.seed)
    right, asked, density, rounds = 0, 0, 0.0, 0
    for x in model.attentions():
        x.measure, x.noise, x.exploring = True, generator, False
    rows = max(1, a.tokens // length)
    for _ in range(max(1, a.tests // rows)):
        logits, want = answers(model, *planted.batch(rows, length, generator))
        right, asked, rounds = right + (logits.argmax(-1) == want).sum().item(), asked + want.numel(), rounds + 1
        density += sum(float(x.pairs) for x in model.attentions()) / len(model.attentions()) / (length * (length + 1) / 2)
    for x in model.attentions():
        x.measure = False
    return {"length": length, "accuracy": right / asked, "answers": asked, "density": round(density / rounds, 4)}


def fit(model, a, batch, warm_up, weight_decay, added=lambda: 0.0, after_step=lambda: None):
    """Trains until `a.steps` or `a.seconds` are over, whichever comes first. `batch(progress, generator)`: logits [..., kinds],
    what they should be, and numbers that the curve shows beside the step; `added`: to the cross-entropy."""
    generator = torch.Generator(a.device).manual_seed(a.seed)
    for x in model.attentions():
        x.noise = generator
    opt = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    began, curve, step, progress = time.time(), [], 0, 0.0
    while progress < 1:
        for group in opt.param_groups:
            group["lr"] = a.lr * min(1, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        logits, want, shown = batch(progress, generator)
        loss = F.cross_entropy(logits.flatten(0, -2), want.flatten())
        opt.zero_grad(set_to_none=True)
        (loss + added()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        after_step()
        if step % 100 == 0:
            right = (logits.argmax(-1) == want).float().mean().item()
            curve.append([step, *shown, round(loss.item(), 4), round(right, 4)])
            print(f"{time.time() - began:.0f} s", curve[-1], flush=True)
        step += 1
        progress = max(step / a.steps, (time.time() - began) / a.seconds)
    return {"steps": step, "seconds": round(time.time() - began, 1), "curve": curve}


def train(model, a):
    chance = random.Random(a.seed)

    def batch(progress, generator):
        length, exploring = length_at(a.lengths, progress), chance.random() < 1 - progress / max(a.explore, 1e-9)
        for x in model.attentions():
            x.exploring = exploring
        return *answers(model, *planted.batch(max(1, a.tokens // length), length, generator)), [length]

    def after_step():
        for x in model.attentions():
            x.after_step()
    return fit(model, a, batch, warm_up=300, weight_decay=0.01, added=lambda: sum(x.loss() for x in model.attentions()),
               after_step=after_step)


@torch.no_grad()
def golden(model, a, ids):
    """Of the last layer, in single precision: queries, keys before and after RoPE, values and the layer's input, rounded to
    F16, and the attention's output from the rounded ones, before the output projection."""
    torch.backends.cuda.matmul.allow_tf32 = False
    seen, x = {}, model.attentions()[-1]
    hook = x.register_forward_pre_hook(lambda _, inputs: seen.update(h=inputs[0]))
    model.eval()
    model(ids, torch.tensor([0], device=ids.device))
    hook.remove()
    rounded = lambda y: y.half().float()  # noqa: E731
    h = rounded(seen["h"])
    q, k, v = (rounded(f(h).unflatten(-1, (-1, x.d))) for f in (x.q, x.k, x.v))
    q, k = (rounded(y) for y in x.prepared(q, k))
    at = torch.arange(h.shape[1], device=h.device)
    q_turned, k_turned = rounded(rotate(q, at, x.base)), rounded(rotate(k, at, x.base))
    o = x.attend(h, q, k, q_turned, k_turned, v)
    made = {"hidden": h, "q": q_turned, "k": k_turned, "q_pre": q, "k_pre": k, "v": v}
    flat = lambda y: y[0].reshape(len(y[0]), -1).float().cpu().numpy()  # noqa: E731
    return [(f"golden.{name}", flat(y), gguf.TYPE_F16) for name, y in made.items()] + [("golden.o", flat(o), gguf.TYPE_F32)]


def write_gguf(path, method, a, numbers, tensors, model="planted-facts decoder"):
    key = gguf.key
    numeric = lambda k, v: key(f"sluice.{k}", gguf.U32 if isinstance(v, int) else gguf.F32, v)  # noqa: E731
    gguf.write(path, [key("general.architecture", gguf.STRING, "sluice-router"), key("general.license", gguf.STRING, "apache-2.0"),
                      key("sluice.method", gguf.STRING, method), key("sluice.model", gguf.STRING, model),
                      key("sluice.seed", gguf.U32, a.seed)] + [numeric(k, v) for k, v in numbers.items()], tensors)


def main(doc, name, attention, options, export=None):
    """`options` adds the method's own to the parser; `export` is given (model, a, path)."""
    p = parser(doc)
    options(p)
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    torch.manual_seed(a.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    model = Decoder(a, Dense if a.select == "dense" else attention, planted.VOCAB).to(a.device)
    stem = os.path.join(a.out, f"{name if a.select != 'dense' else 'scratch'}-{a.select}-s{a.seed}")
    report = {"method": name, "select": a.select, "seed": a.seed, "args": vars(a),
              "parameters": sum(x.numel() for x in model.parameters()),
              "device": torch.cuda.get_device_name() if a.device == "cuda" else a.device, **train(model, a),
              "tests": [evaluate(model, a, n) for n in a.lengths]}
    print(report["tests"], flush=True)
    with open(stem + ".json", "w") as f:
        json.dump(report, f, indent=1)
    if export is not None and a.select == "learned":
        export(model, a, stem + ".gguf")
