#!/usr/bin/env python3
"""Trains the lightning indexer of DeepSeek sparse attention (DSA, arXiv 2512.02556), which HISA (arXiv 2603.28458) searches
too, for a frozen language model: a few small index heads score all tokens for all heads of a layer.

Score of token s for query t: the sum over index heads of weight(t) * ReLU(index query(t) . index key(s)). Target: the
attention probabilities summed over heads, normalised; loss: KL from it to the softmax of the scores (the paper's warm-up;
its second stage trains the model too). Index queries and weights are linear maps of the layer's queries before RoPE, keys the
layer norm of a linear map of its keys (the paper: of the queries' latent and the layer's input), so that a router reads
nothing that attention does not. All seeds see the same sequences, each of them rows of its own. Reported on held-out text:
the attention mass that the k best tokens hold, beside the truly best, the attention's own queries and keys as an indexer,
and indexers of random weights. One GPU, some minutes. Example:
  lightning_indexer.py --model sluice-mini-q8_0.gguf --corpus corpus.txt.xz --out out --seeds 1 2 3
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
from frozen_llama import FrozenLlama, full, layers  # noqa: E402
from rope import rotate  # noqa: E402
from tasks import Tasks  # noqa: E402

P = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
P.add_argument("--model", required=True)
P.add_argument("--corpus", required=True)
P.add_argument("--out", required=True)
P.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
P.add_argument("--heads", type=int, default=8, help="index heads (published: 64)")
P.add_argument("--dim", type=int, default=32, help="of index queries and keys (published: 128)")
P.add_argument("--rope", type=int, default=16, help="of them turned to the position (published: 64)")
P.add_argument("--steps", type=int, default=300, help="sequences, one a step")
P.add_argument("--seconds", type=float, default=1e9, help="ends the training earlier, its rate with it")
P.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384])
P.add_argument("--rows", type=int, default=768, help="queries a sequence, half of them where facts are asked about")
P.add_argument("--lr", type=float, default=2e-3)
P.add_argument("--planted", type=float, default=0.5, help="share of the sequences with planted facts")
P.add_argument("--k", type=int, nargs="+", default=[128, 512], help="tokens of the report's lists")
P.add_argument("--eval-length", type=int, default=16384)
P.add_argument("--eval-rows", type=int, default=4, help="held-out sequences of each kind of the report")
P.add_argument("--megabytes", type=int, default=24)
P.add_argument("--device", default="cuda")


class Indexer(nn.Module):
    """One layer's."""

    def __init__(self, model, heads, dim, turned, seed):
        super().__init__()
        self.heads, self.dim, self.turned, self.base = heads, dim, turned, model.rope_base
        q, k = model.heads * model.head, model.kv_heads * model.head
        g = torch.Generator().manual_seed(seed)
        draw = lambda *shape: nn.Parameter(torch.randn(*shape, generator=g) * shape[-1] ** -0.5)  # noqa: E731
        self.query, self.key, self.weight = draw(heads * dim, q), draw(dim, k), draw(heads, q)
        self.scale = (heads * dim) ** -0.5  # a softmax of larger scores has no slope to begin from; a part of the stored weight
        self.key_norm, self.key_shift = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def turn(self, x, positions):
        """x [rows, heads, dim]."""
        return torch.cat((rotate(x[..., :self.turned], positions, self.base), x[..., self.turned:]), -1)

    def forward(self, q, k, rows):
        """q [t, heads, d], k [t, kv, d], before RoPE, rows [n] of the queries -> scores [n, t]; -inf of what comes later."""
        at = torch.arange(len(k), device=k.device)
        keys = F.layer_norm(full(k).flatten(1) @ self.key.T, (self.dim,), self.key_norm, self.key_shift)
        q = full(q[rows]).flatten(1)
        queries = self.turn((q @ self.query.T).unflatten(1, (self.heads, self.dim)), rows)
        keys = self.turn(keys[:, None], at)[:, 0]
        score = torch.einsum("nh,nhs->ns", q @ self.weight.T * self.scale, torch.einsum("nhd,sd->nhs", queries, keys).relu())
        return score.masked_fill(at > rows[:, None], -torch.inf)


@torch.no_grad()
def probabilities(q, k, rows):
    """q [t, heads, d], k [t, kv, d] after RoPE -> the mean over heads of the attention probabilities, [rows, t]."""
    group, at = q.shape[1] // k.shape[1], torch.arange(len(k), device=k.device)
    out = 0
    for head in range(q.shape[1]):
        s = full(q[rows, head]) @ full(k[:, head // group]).T * q.shape[-1] ** -0.5
        out = out + s.masked_fill(at > rows[:, None], -torch.inf).softmax(-1)
    return out / q.shape[1]


def divergence(target, score):
    """KL(target || softmax), a mean over rows."""
    log = score.log_softmax(-1).masked_fill(score == -torch.inf, 0)
    return (torch.special.xlogy(target, target) - target * log).sum(-1).mean()


def sequence(tasks, rng, n, planted, split="train"):
    """(ids, where questions begin)."""
    if not planted:
        return tasks.plain(rng, n, split), n
    count = int(rng.integers(8, 9 + n // 512))
    ids, _, prompt = tasks.planted(rng, n, split, count, asked=int(rng.integers(count // 2, count + 1)))
    return ids, prompt - 24


def rows_of(rng, n, asked, count):
    """Queries to learn from: anywhere but at the beginning, half of them among the questions."""
    late = np.arange(min(asked, n), n)
    late = rng.choice(late, min(len(late), count // 2), replace=False)
    early = rng.choice(np.arange(n // 16, min(asked, n)), count - len(late), replace=False)
    return np.sort(np.concatenate((early, late)))


def indexers_of(model, a, seed):
    return nn.ModuleList(Indexer(model, a.heads, a.dim, a.rope, seed * 1000 + i) for i in range(model.layers)).to(a.device)


def train(model, tasks, a):
    """{seed: indexers}, curve"""
    made = {seed: indexers_of(model, a, seed) for seed in a.seeds}
    opts = {seed: torch.optim.AdamW(x.parameters(), lr=a.lr, betas=(0.9, 0.95), weight_decay=0.0) for seed, x in made.items()}
    rng, of_seed = np.random.default_rng(a.seeds[0]), {seed: np.random.default_rng(seed + 7) for seed in a.seeds}
    curve, began, step, progress = [], time.time(), 0, 0.0
    while progress < 1:
        n = a.lengths[int(rng.integers(len(a.lengths)))]
        ids, asked = sequence(tasks, rng, n, rng.random() < a.planted)
        rows = {s: torch.from_numpy(rows_of(of_seed[s], n, asked, min(a.rows, n // 2))).to(a.device) for s in a.seeds}
        seen = dict.fromkeys(a.seeds, 0.0)
        for opt in opts.values():
            for group in opt.param_groups:
                group["lr"] = a.lr * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * progress))
            opt.zero_grad()
        for layer, q, k, q_turned, k_turned in layers(model, torch.from_numpy(ids).to(a.device), a.dtype):
            for seed, x in made.items():
                loss = divergence(probabilities(q_turned, k_turned, rows[seed]), x[layer](q, k, rows[seed]))
                seen[seed] += loss.item() / model.layers
                loss.backward()
        for seed, opt in opts.items():
            for x in made[seed]:
                nn.utils.clip_grad_norm_(x.parameters(), 1.0)
            opt.step()
        if step % 10 == 0:
            curve.append([step, n, *(round(v, 4) for v in seen.values())])
            print(f"{time.time() - began:.0f} s", curve[-1], flush=True)
        step += 1
        progress = max(step / a.steps, (time.time() - began) / a.seconds)
    return made, {"steps": step, "seconds": round(time.time() - began, 1), "curve": curve}


@torch.no_grad()
def evaluate(model, tasks, a, made):
    """{kind: {"k: who": attention mass of the k best tokens}}, a mean over rows, layers and sequences."""
    report, random = {}, indexers_of(model, a, 777)
    n, group = a.eval_length, model.heads // model.kv_heads
    for kind, planted in (("plain", False), ("facts", True)):
        rng, sums, count = np.random.default_rng(99), {}, 0
        for _ in range(a.eval_rows):
            ids, asked = sequence(tasks, rng, n, planted, "held")
            rows = torch.from_numpy(np.arange(asked, n, 4) if planted else np.arange(n // 2, n, 32)).to(a.device)
            for layer, q, k, q_turned, k_turned in layers(model, torch.from_numpy(ids).to(a.device), a.dtype):
                p = probabilities(q_turned, k_turned, rows)
                own = sum((full(q_turned[rows, h]) @ full(k_turned[:, h // group]).T).relu() for h in range(model.heads))
                own = own.masked_fill(p == 0, -torch.inf)
                scores = {"best": p, "own queries and keys": own, "random": random[layer](q, k, rows)}
                scores |= {f"seed {s}": x[layer](q, k, rows) for s, x in made.items()}
                for k_best in a.k:
                    for name, s in scores.items():
                        held = p.gather(1, s.topk(min(k_best, n), 1).indices).sum(1).mean().item()
                        sums[f"{k_best}: {name}"] = sums.get(f"{k_best}: {name}", 0.0) + held
                count += 1
        report[kind] = {k: round(v / count, 4) for k, v in sums.items()}
        print(kind, report[kind], flush=True)
    return report


@torch.no_grad()
def export(model, tasks, a, indexers, seed, path):
    """Weights as F16, and what the last layer's indexer says of one sequence, which a test reproduces."""
    tensors = []
    for i, x in enumerate(indexers):
        x.weight.mul_(x.scale)
        x.scale = 1.0
        for name, w in x.named_parameters():
            if w.ndim > 1:
                w.copy_(w.half().float())
            tensors.append((f"lightning_indexer.{i}.{name}", w.cpu().numpy(), gguf.TYPE_F16 if w.ndim > 1 else gguf.TYPE_F32))
    n = 96
    ids = torch.from_numpy(tasks.plain(np.random.default_rng(1000 + seed), n, "held")).to(a.device)
    *_, (layer, q, k, q_turned, k_turned) = layers(model, ids, torch.float32)
    q, k, q_turned, k_turned = (y.half().float() for y in (q, k, q_turned, k_turned))
    at = torch.arange(n, device=a.device)
    back = lambda y: rotate(y, -at, model.rope_base)  # noqa: E731  what a router does, which sees them turned
    score = indexers[layer](back(q_turned), back(k_turned), at).masked_fill(at > at[:, None], 0)
    tensors += [("golden.q", q_turned.flatten(1).cpu().numpy(), gguf.TYPE_F16),
                ("golden.k", k_turned.flatten(1).cpu().numpy(), gguf.TYPE_F16),
                ("golden.score", score.cpu().numpy(), gguf.TYPE_F32)]
    u, s, key = gguf.U32, gguf.STRING, gguf.key
    ints = {"layers": model.layers, "heads": model.heads, "kv_heads": model.kv_heads, "head_dim": model.head,
            "index_heads": a.heads, "index_dim": a.dim, "rope": a.rope}
    gguf.write(path, [key("general.architecture", s, "sluice-router"), key("general.license", s, "apache-2.0"),
                      key("sluice.method", s, "dsa"), key("sluice.model", s, model.name), key("sluice.seed", u, seed)] +
               [key(f"sluice.lightning_indexer.{k}", u, v) for k, v in ints.items()], tensors)


def main():
    a = P.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    os.makedirs(a.out, exist_ok=True)
    a.dtype = torch.bfloat16 if a.device == "cuda" else torch.float32
    model = FrozenLlama(a.model, a.device)
    model.w = {k: v.to(a.dtype) if v.ndim > 1 else v for k, v in model.w.items()}
    tasks = Tasks(a.corpus, model.tokenizer(), a.megabytes, 1)
    print({k: len(v) for k, v in tasks.streams.items()}, flush=True)
    made, trained = train(model, tasks, a)
    report = {"model": model.name, "args": {**vars(a), "dtype": str(a.dtype)}, **trained, "mass": evaluate(model, tasks, a, made)}
    torch.backends.cuda.matmul.allow_tf32 = False
    for seed, x in made.items():
        export(model, tasks, a, x, seed, os.path.join(a.out, f"lightning_indexer-s{seed}.gguf"))
    with open(os.path.join(a.out, "lightning_indexer.json"), "w") as f:
        json.dump(report, f, indent=1)


if __name__ == "__main__":
    main()
