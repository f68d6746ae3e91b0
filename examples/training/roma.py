#!/usr/bin/env python3
"""Trains the routers of a Mixture of Experts by Routing Manifold Alignment (RoMA, arXiv 2511.07419): prompts that lie near
each other in a space of text embeddings shall be routed alike, where the model answers the neighbour correctly.

Samples are planted facts with a question at the end. Loss: cross entropy of the answer, and lambda sum_j w_ij |r_i - r_j|^2,
r the router's probabilities at the prompt's last token over the tuned layers: r_i of the live forward pass, r_j of the
frozen model, j the nearest correctly answered samples but i. Only the routers of the last layers learn. Ours: the embedding,
the mean of the tokens' embeddings; sizes, rates and lambda's warm-up. Three arms of the same steps: aligned, with random
neighbours, and without the term (plain router tuning). Reported on held-out samples and text: answers that are right,
misalignment, perplexity. Gates without a bias, as expert/roma reads them. One GPU, some minutes. Example:
  roma.py --model sluice-mini-moe-q8_0.gguf --corpus corpus.txt.xz --out out --seeds 1 2 3
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
P.add_argument("--samples", type=int, default=6144, help="to train on; the published training has 49,000")
P.add_argument("--tests", type=int, default=1024, help="held-out samples of the report")
P.add_argument("--text", type=int, default=16, help="held-out sequences of plain text for perplexity")
P.add_argument("--length", type=int, default=512, help="tokens of a sample")
P.add_argument("--facts", type=int, default=6, help="of a sample, of which one is asked for")
P.add_argument("--tuned", type=int, default=5, help="last layers whose routers learn")
P.add_argument("--neighbours", type=int, default=3)
P.add_argument("--sigma", type=float, default=0.4, help="of the kernel, over distances of embeddings of length 1")
P.add_argument("--lam", type=float, default=0.8)
P.add_argument("--lr", type=float, default=3e-4)
P.add_argument("--batch", type=int, default=32)
P.add_argument("--epochs", type=int, default=3)
P.add_argument("--megabytes", type=int, default=24)
P.add_argument("--device", default="cuda")


def gates_of(model, tuned):
    """layer -> its router, of the last `tuned` layers; copies that learn."""
    first = model.layers - tuned
    return nn.ParameterDict({str(i): nn.Parameter(full(model.w[f"blk.{i}.ffn_gate_inp.weight"]).clone())
                             for i in range(first, model.layers)})


def forward(model, ids, gates, last, dtype):
    """ids [b, t] -> (x [b, t, width], r [b, tuned layers * experts] at the tokens `last` [b])."""
    x, angles, routes = model.embed(ids, dtype), model.angles(ids.shape[1]), []
    at = torch.arange(len(ids), device=ids.device)
    for i in range(model.layers):
        q, k, v = model.qkv(i, model.norm(f"blk.{i}.attn_norm", x))
        x = x + model.out(i, model.attend(model.rotate(q, angles), model.rotate(k, angles), v))
        h = model.norm(f"blk.{i}.ffn_norm", x)
        gate = gates[str(i)] if str(i) in gates else model.w[f"blk.{i}.ffn_gate_inp.weight"]
        p = (full(h) @ full(gate).T).softmax(-1)
        if str(i) in gates:
            routes.append(p[at, last])
        x = x + model.experts(i, h, p)
    return x, torch.cat(routes, -1)


def manifold(r, others, weight):
    """sum_j w_ij |r_i - r_j|^2 of every sample: r [b, n], others [b, k, n], weight [b, k], 0 where there is no neighbour."""
    return (weight * (r[:, None] - others).pow(2).sum(-1)).sum(-1)


def losses(model, gates, ids, answer, last, others, weight, dtype):
    """(cross entropy of the answers, mean manifold loss over samples, whether each sample's answer is right)."""
    x, r = forward(model, ids, gates, last, dtype)
    asked = answer[:, 1:]
    logits, want = full(model.logits(x[:, :-1][asked])), ids[:, 1:][asked]
    wrong = torch.zeros(len(ids), device=ids.device)
    wrong.index_add_(0, asked.nonzero()[:, 0], (logits.argmax(-1) != want).float())
    return F.cross_entropy(logits, want), manifold(r, others, weight).mean(), wrong == 0, r


def samples(model, tasks, a, count, seed, split):
    rng = np.random.default_rng(seed)
    drawn = [tasks.planted(rng, a.length, split, a.facts, 1) for _ in range(count)]
    ids, answer = (torch.from_numpy(np.stack([d[i] for d in drawn])).to(a.device) for i in (0, 1))
    last = torch.tensor([d[2] - 1 for d in drawn], device=a.device)
    assert bool(answer[torch.arange(count), last + 1].all()), "the answer follows the prompt's last token"
    embedding = torch.stack([model.embed(row[:end + 1]).mean(0) for row, end in zip(ids, last.tolist())])
    return {"ids": ids, "answer": answer, "last": last, "embedding": F.normalize(full(embedding), dim=-1)}


def none_of(n, width, like):
    return torch.zeros(n, 1, width, device=like.device), torch.zeros(n, 1, device=like.device)


@torch.no_grad()
def measured(model, gates, s, a, dtype):
    """What the routers do with samples: r, right, cross entropy."""
    r, right, ce = [], [], 0.0
    for at in range(0, len(s["ids"]), a.batch):
        part = {k: v[at:at + a.batch] for k, v in s.items()}
        others, weight = none_of(len(part["ids"]), 1, part["ids"])
        loss, _, ok, routes = losses(model, gates, part["ids"], part["answer"], part["last"], others, weight, dtype)
        r, right, ce = [*r, routes], [*right, ok], ce + loss.item() * len(part["ids"]) / len(s["ids"])
    return torch.cat(r), torch.cat(right), ce


def neighbours(points, known, right, a, own, draw=None):
    """(index [n, k], weight [n, k]) of the nearest `known` points that are right; of points that are `known` themselves
    never the sample itself. Weights of exp(-d^2 / 2 sigma^2) sum to 1, or are 0 where none is right. `draw`: a generator,
    random ones instead."""
    d = torch.cdist(points, known).pow(2)
    taken = right[None].expand_as(d).clone()
    if own:
        taken.fill_diagonal_(False)
    rank = d if draw is None else torch.rand(d.shape, generator=draw).to(d.device)
    k = min(a.neighbours, d.shape[1])
    index = rank.masked_fill(~taken, torch.inf).topk(k, -1, largest=False).indices
    found = taken.gather(-1, index)
    near = d.gather(-1, index).masked_fill(~found, torch.inf)
    nearest = near.amin(-1, keepdim=True).nan_to_num(posinf=0.0)
    weight = (-(near - nearest) / (2 * a.sigma ** 2)).exp().masked_fill(~found, 0)
    return index, weight / weight.sum(-1, keepdim=True).clamp(min=1e-30)


@torch.no_grad()
def perplexity(model, gates, tasks, a, dtype):
    rng, total = np.random.default_rng(99), 0.0
    for _ in range(a.text):
        ids = torch.from_numpy(tasks.plain(rng, a.length, "held"))[None].to(a.device)
        x, _ = forward(model, ids, gates, torch.tensor([0], device=a.device), dtype)
        total += F.cross_entropy(full(model.logits(x[0, :-1])), ids[0, 1:]).item()
    return math.exp(total / a.text)


def train(model, s, frozen, a, seed, arm, dtype):
    gates = gates_of(model, a.tuned)
    opt = torch.optim.AdamW(gates.parameters(), lr=a.lr, weight_decay=0.01)
    rng, curve, began = np.random.default_rng(seed), [], time.time()
    draw = torch.Generator().manual_seed(seed) if arm == "random" else None
    index, weight = neighbours(s["embedding"], s["embedding"], frozen["right"], a, True, draw)
    steps, step = a.epochs * math.ceil(len(s["ids"]) / a.batch), 0
    for _ in range(a.epochs):
        order = rng.permutation(len(s["ids"]))
        for at in range(0, len(order), a.batch):
            rows = torch.from_numpy(order[at:at + a.batch]).to(a.device)
            warm = min(1, (step + 1) / (0.1 * steps))
            for group in opt.param_groups:
                group["lr"] = a.lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            ce, apart, right, _ = losses(model, gates, *(s[k][rows] for k in ("ids", "answer", "last")),
                                         frozen["r"][index[rows]], weight[rows], dtype)
            opt.zero_grad()
            (ce + (0 if arm == "plain" else a.lam * warm) * apart).backward()
            nn.utils.clip_grad_norm_(gates.parameters(), 1.0)
            opt.step()
            if step % 20 == 0 or step + 1 == steps:
                curve.append({"step": step, "answers": round(ce.item(), 4), "manifold": round(apart.item(), 5), "right": right.float().mean().item()})
                print(f"seed {seed} {arm} {time.time() - began:.0f} s", curve[-1], flush=True)
            step += 1
    return gates, curve


def report_of(model, gates, tasks, test, train_set, frozen, a, dtype):
    r, right, ce = measured(model, gates, test, a, dtype)
    index, weight = neighbours(test["embedding"], train_set["embedding"], frozen["right"], a, False)
    return {"right": right.float().mean().item(), "answers": ce, "manifold": manifold(r, frozen["r"][index], weight).mean().item(),
            "perplexity": perplexity(model, gates, tasks, a, dtype)}


def export(model, gates, a, seed, path):
    """Every layer's gate, those that did not learn too, in the order of expert/roma's keys."""
    gate = lambda i: gates[str(i)].detach() if str(i) in gates else model.w[f"blk.{i}.ffn_gate_inp.weight"]  # noqa: E731
    tensors = [(f"blk.{i}.roma.gate.weight", full(gate(i)).cpu().numpy(), gguf.TYPE_F32) for i in range(model.layers)]
    u, s, key = gguf.U32, gguf.STRING, gguf.key
    ints = {"layers": model.layers, "dim": model.width, "experts": tensors[0][1].shape[0]}
    gguf.write(path, [key("general.architecture", s, "sluice-router"), key("general.license", s, "apache-2.0"),
                      key("sluice.method", s, "roma"), key("sluice.model", s, model.name), key("sluice.seed", u, seed)] +
               [key(f"sluice.roma.{k}", u, v) for k, v in ints.items()], tensors)


def main():
    a = P.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    os.makedirs(a.out, exist_ok=True)
    dtype = torch.bfloat16 if a.device == "cuda" else torch.float32
    model = FrozenLlama(a.model, a.device)
    if not model.experts_used:
        sys.exit(f"{a.model}: the model has no experts; allowed: a Mixture of Experts")
    if not 1 <= a.tuned <= model.layers:
        sys.exit(f"--tuned {a.tuned}; allowed: 1 to the model's {model.layers} layers")
    model.w = {k: v.to(dtype) if v.ndim > 1 and "gate_inp" not in k else v for k, v in model.w.items()}
    tasks = Tasks(a.corpus, model.tokenizer(), a.megabytes, 1)
    print({k: len(v) for k, v in tasks.streams.items()}, flush=True)
    for seed in a.seeds:
        began = time.time()
        learn, test = samples(model, tasks, a, a.samples, seed, "train"), samples(model, tasks, a, a.tests, 1000 + seed, "held")
        untouched = gates_of(model, a.tuned)
        r, right, _ = measured(model, untouched, learn, a, dtype)
        frozen = {"r": r, "right": right}
        report = {"method": "roma", "seed": seed, "model": model.name, "args": vars(a), "right_of_training": right.float().mean().item(),
                  "frozen": report_of(model, untouched, tasks, test, learn, frozen, a, dtype), "curves": {}}
        for arm in ("aligned", "random", "plain"):
            gates, report["curves"][arm] = train(model, learn, frozen, a, seed, arm, dtype)
            report[arm] = report_of(model, gates, tasks, test, learn, frozen, a, dtype)
            print(arm, report[arm], flush=True)
            if arm == "aligned":
                export(model, gates, a, seed, os.path.join(a.out, f"roma-s{seed}.gguf"))
        report["seconds"] = time.time() - began
        with open(os.path.join(a.out, f"roma-s{seed}.json"), "w") as f:
            json.dump(report, f, indent=1)


if __name__ == "__main__":
    main()
