#!/usr/bin/env python3
"""Trains hard-attention gates (arXiv 2407.04400) of a decoder: a number a for every channel of what attention and FFN of
each layer add, which sigmoid(a) multiplies, whatever the input.

Gradient routing: two passes over a batch. The first one's gradient moves the gates alone, the second one's the model alone;
gradients are cleared between, which the published code does not do. --train gates holds the model still, so that the gates
belong to the file that was given; --train both is the published training. Ours: --press, which pulls gates towards 0 (the
paper has no such term, and its gates have no reason to close), and the start of a: 0, as published, or 4 for a model that
is held still, which gates of a half would break. Reported on held-out text: perplexity of the model as it was, gated,
folded (the same by construction), and with a share of the channels pruned by the gates, by the sizes of their rows, and at
random. One GPU, some minutes. Example:
  hard_attention_gates.py --model sluice-mini-q8_0.gguf --corpus corpus.txt.xz --out out --seeds 1 2 3 --press 0.02
"""
import argparse
import json
import math
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "common"))
import gguf  # noqa: E402
from frozen_llama import FrozenLlama, full  # noqa: E402
from tasks import Tasks  # noqa: E402

P = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
P.add_argument("--model", required=True)
P.add_argument("--corpus", required=True)
P.add_argument("--out", required=True)
P.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
P.add_argument("--train", choices=["gates", "both"], default="gates")
P.add_argument("--steps", type=int, default=600)
P.add_argument("--batch", type=int, default=16, help="sequences a step")
P.add_argument("--length", type=int, default=1024, help="tokens of a sequence, from 256: planted facts must fit")
P.add_argument("--gate-lr", type=float, default=1e-2)
P.add_argument("--lr", type=float, default=1e-4, help="of the model")
P.add_argument("--press", type=float, default=0.0, help="weight of the gates' mean in the first pass")
P.add_argument("--start", type=float, help="of a (default: 4 with --train gates, else 0)")
P.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5], help="channels pruned in the report")
P.add_argument("--tests", type=int, default=16, help="held-out sequences of the report")
P.add_argument("--planted", type=float, default=0.35, help="share of the sequences with planted facts")
P.add_argument("--megabytes", type=int, default=24)
P.add_argument("--device", default="cuda")
BRANCHES = ("attention", "ffn")
LAST_MATRIX = {"attention": "attn_output", "ffn": "ffn_down"}


class Gates(nn.Module):
    def __init__(self, layers, width, start, seed):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(start + torch.randn(layers, 2, width, generator=g) * (2 / (width + 1)) ** 0.5)

    def forward(self):
        return self.a.sigmoid()


def hidden(model, gates, ids, dtype):
    """gates [layers, 2, width], what each branch is multiplied with -> x [b, t, width]."""
    x, angles = model.embed(ids, dtype), model.angles(ids.shape[1])
    for i in range(model.layers):
        q, k, v = model.qkv(i, model.norm(f"blk.{i}.attn_norm", x))
        x = x + model.out(i, model.attend(model.rotate(q, angles), model.rotate(k, angles), v)) * gates[i, 0].to(dtype)
        x = x + model.ffn(i, model.norm(f"blk.{i}.ffn_norm", x)) * gates[i, 1].to(dtype)
    return x


def cross_entropy(model, gates, ids, dtype):
    x = hidden(model, gates, ids[:, :-1], dtype)
    return F.cross_entropy(full(model.logits(x)).flatten(0, 1), ids[:, 1:].flatten())


def gate_loss(model, gates, ids, press, dtype):
    g = gates()
    return cross_entropy(model, g, ids, dtype) + press * g.mean()


def two_passes(model, gates, opt_gates, main, opt_main, ids, press, dtype):
    """One step: what the gates' pass left in the model's gradients is gone before the model's pass. -> both losses."""
    def clear():
        for p in (*gates.parameters(), *main):
            p.grad = None

    clear()
    first = gate_loss(model, gates, ids, press, dtype)
    first.backward()
    nn.utils.clip_grad_norm_(gates.parameters(), 128)
    opt_gates.step()
    if not main:
        return first.item(), first.item()
    clear()
    second = cross_entropy(model, gates(), ids, dtype)
    second.backward()
    nn.utils.clip_grad_norm_(main, 10)
    opt_main.step()
    return first.item(), second.item()


def batch(tasks, a, rng):
    rows = [tasks.planted(rng, a.length)[0] if rng.random() < a.planted else tasks.plain(rng, a.length) for _ in range(a.batch)]
    return torch.from_numpy(np.stack(rows)).to(a.device)


def train(model, tasks, a, seed, dtype):
    start = a.start if a.start is not None else 4.0 if a.train == "gates" else 0.0
    gates, rng = Gates(model.layers, model.width, start, seed).to(a.device), np.random.default_rng(seed)
    main = []
    if a.train == "both":
        model.w = {k: nn.Parameter(full(v).clone()) for k, v in model.w.items()}
        main = list(model.w.values())
    opt_gates = torch.optim.Adam(gates.parameters(), lr=a.gate_lr)
    opt_main = torch.optim.Adam(main, lr=a.lr) if main else None
    curve, began = [], time.time()
    for step in range(a.steps):
        for opt, rate in ((opt_gates, a.gate_lr), (opt_main, a.lr)):
            for group in opt.param_groups if opt else ():
                group["lr"] = rate * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / a.steps))
        first, second = two_passes(model, gates, opt_gates, main, opt_main, batch(tasks, a, rng), a.press, dtype)
        if step % 20 == 0 or step + 1 == a.steps:
            curve.append({"step": step, "gates": round(first, 4), "model": round(second, 4), "mean": round(gates().mean().item(), 4)})
            print(f"seed {seed} {time.time() - began:.0f} s", curve[-1], flush=True)
    return gates, curve


@torch.no_grad()
def perplexity(model, gates, tasks, a, dtype):
    rng, total = np.random.default_rng(99), 0.0
    for _ in range(a.tests):
        ids = torch.from_numpy(tasks.plain(rng, a.length, "held"))[None].to(a.device)
        total += cross_entropy(model, gates, ids, dtype).item()
    return math.exp(total / a.tests)


def row_sizes(model):
    """Lengths of the rows of each branch's last matrix, [layers, 2, width]."""
    return torch.stack([torch.stack([full(model.w[f"blk.{i}.{LAST_MATRIX[b]}.weight"]).norm(dim=1) for b in BRANCHES])
                        for i in range(model.layers)])


def pruned(gates, score, share):
    """The gates, 0 where the score is among the lowest `share` of all channels."""
    count = round(share * score.numel())
    lowest = score.flatten().argsort(stable=True)[:count]
    return gates.flatten().index_fill(0, lowest, 0.0).view_as(gates)


def correlation(x, y):
    """Of ranks."""
    ranks = [v.flatten().argsort().argsort().double() for v in (x, y)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


@torch.no_grad()
def evaluate(model, gates, tasks, a, seed, dtype):
    g, sizes = gates().detach(), row_sizes(model)
    drawn = torch.rand(g.shape, generator=torch.Generator().manual_seed(seed)).to(g.device)
    kept, report = dict(model.w), {"gated": perplexity(model, g, tasks, a, dtype)}
    for i in range(model.layers):
        for b, branch in enumerate(BRANCHES):
            name = f"blk.{i}.{LAST_MATRIX[branch]}.weight"
            model.w[name] = (g[i, b][:, None] * full(model.w[name])).to(model.w[name].dtype)
    report["folded"] = perplexity(model, torch.ones_like(g), tasks, a, dtype)
    model.w = kept
    for share in a.shares:
        report[f"pruned {share}"] = {name: perplexity(model, pruned(g, score, share), tasks, a, dtype)
                                     for name, score in (("gates", g), ("row sizes", sizes), ("gated row sizes", g * sizes), ("random", drawn))}
    return {**report, "mean gate": g.mean().item(), "below a half": (g < 0.5).float().mean().item(),
            "rank correlation with row sizes": correlation(g, sizes)}


def export(model, gates, a, seed, path):
    tensors = [(f"blk.{i}.gates.{branch}", gates.a[i, b].detach().cpu().numpy(), gguf.TYPE_F32)
               for i in range(model.layers) for b, branch in enumerate(BRANCHES)]
    u, s, key = gguf.U32, gguf.STRING, gguf.key
    gguf.write(path, [key("general.architecture", s, "sluice-router"), key("general.license", s, "apache-2.0"),
                      key("sluice.method", s, "hard_attention_gates"), key("sluice.model", s, model.name), key("sluice.seed", u, seed),
                      key("sluice.gates.channels", u, model.width)], tensors)


def main():
    a = P.parse_args()
    if a.length < 256:
        P.error(f"--length {a.length}; allowed: from 256, planted facts must fit")
    torch.backends.cuda.matmul.allow_tf32 = True
    os.makedirs(a.out, exist_ok=True)
    dtype = torch.bfloat16 if a.device == "cuda" else torch.float32
    model = FrozenLlama(a.model, a.device)
    if model.experts_used:
        sys.exit(f"{a.model}: a Mixture of Experts; allowed: models with a dense FFN")
    given = {k: v.to(dtype) if v.ndim > 1 else v for k, v in model.w.items()}
    tasks = Tasks(a.corpus, model.tokenizer(), a.megabytes, 1)
    print({k: len(v) for k, v in tasks.streams.items()}, flush=True)
    for seed in a.seeds:
        model.w, began = dict(given), time.time()
        report = {"method": "hard_attention_gates", "seed": seed, "model": model.name, "args": vars(a),
                  "dense": perplexity(model, torch.ones(model.layers, 2, model.width, device=a.device), tasks, a, dtype)}
        gates, report["curve"] = train(model, tasks, a, seed, dtype)
        report.update(evaluate(model, gates, tasks, a, seed, dtype), seconds=time.time() - began)
        print({k: v for k, v in report.items() if k not in ("curve", "args")}, flush=True)
        if a.train == "gates":  # those of both belong to a model that is not written
            export(model, gates, a, seed, os.path.join(a.out, f"hard_attention_gates-s{seed}.gguf"))
        with open(os.path.join(a.out, f"hard_attention_gates-{a.train}-s{seed}.json"), "w") as f:
            json.dump(report, f, indent=1)


if __name__ == "__main__":
    main()
