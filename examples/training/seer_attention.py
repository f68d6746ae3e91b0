#!/usr/bin/env python3
"""Trains the gates of SeerAttention (arXiv 2410.13276) and of its decode form, SeerAttention-R (arXiv 2506.08889), for a
frozen language model: a gate learns which blocks of keys hold the largest attention probabilities.

Targets: the largest true probability of every block (or its sum, or both), over the queries of a tile (prompt gate) or
the heads of a group (decode gate), each row normalised; loss: KL from them to the gate's softmax. The first rows, which
see few blocks, are left out. Reported on held-out text: the attention mass that the chosen blocks hold at one density,
as so many blocks a row and as all blocks above a threshold, which is found on training text; beside the best blocks,
means without a gate, and gates of random weights. One GPU, some minutes. Example:
  seer_attention.py --model sluice-mini-q8_0.gguf --corpus corpus.txt.xz --out out --seeds 1 2 3
"""
import argparse
import json
import math
import os
import sys
import time

import numpy as np
import torch
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
P.add_argument("--steps", type=int, default=400, help="sequences, one a step")
P.add_argument("--seconds", type=float, default=0, help="instead of --steps: training time of a seed")
P.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384])
P.add_argument("--lr", type=float, default=1e-3)
P.add_argument("--loss-scale", type=float, default=10)
P.add_argument("--target", default="max", choices=["max", "mass", "both"],
               help="of a block's probabilities: the largest (published), their sum, or the mean of the two")
P.add_argument("--block", type=int, default=64)
P.add_argument("--tiles", type=int, nargs="+", default=[64], help="queries a row of the prompt gate; one gate for each")
P.add_argument("--queries", nargs="+", default=["mean"], choices=["mean", "max_min_mean"],
               help="how a tile's queries are pooled; mean has no map of its own; one gate for each")
P.add_argument("--init", default="random", choices=["random", "identity"],
               help="the prompt gate's first weights; identity: the mean alone and a tenth of the random ones")
P.add_argument("--decode-rows", type=int, default=1024, help="queries a sequence that the decode gate learns from")
P.add_argument("--planted", type=float, default=0.5, help="share of the sequences with planted facts")
P.add_argument("--spaces", action="store_true", help="facts between spaces instead of line breaks, as some models learned them")
P.add_argument("--density", type=float, default=0.1, help="of the report")
P.add_argument("--eval-rows", type=int, default=4, help="held-out sequences of each kind of the report")
P.add_argument("--megabytes", type=int, default=24)
P.add_argument("--device", default="cuda")


def pooled(x, n):
    """x [t, heads, d], t a multiple of n -> maxima, minima and means of n rows, [t / n, heads, 3 d]."""
    x = full(x).unflatten(0, (-1, n))
    return torch.cat((x.amax(1), x.amin(1), x.mean(1)), -1)


class PromptGate(nn.Module):
    """One layer's: a tile of queries against blocks of keys, a list a query head."""

    def __init__(self, model, block, tile, queries, init, seed):
        super().__init__()
        self.heads, self.kv, self.d, self.base = model.heads, model.kv_heads, model.head, model.rope_base
        self.block, self.tile, self.queries = block, tile, queries
        g = torch.Generator().manual_seed(seed)

        def weights(heads):
            w = torch.randn(heads, self.d, 3 * self.d, generator=g) * (3 * self.d) ** -0.5
            if init == "identity":
                w = 0.1 * w
                w[:, :, 2 * self.d:] += torch.eye(self.d)
            return nn.Parameter(w)

        self.key = weights(self.heads if queries == "mean" else self.kv)
        if queries != "mean":
            self.query = weights(self.heads)

    def forward(self, q, k):
        """q [t, heads, d], k [t, kv, d], before RoPE -> logits [heads, tiles, blocks]; -inf where nothing is seen."""
        keys, q = pooled(k, self.block), pooled(q, self.tile)
        if self.queries == "mean":
            keys, q = keys.repeat_interleave(self.heads // self.kv, 1), q[..., 2 * self.d:]
        else:
            q = torch.einsum("thi,hoi->tho", q, self.query)
        keys = torch.einsum("bhi,hoi->bho", keys, self.key)
        at = lambda x, n: torch.arange(len(x), device=x.device) * n  # noqa: E731
        keys, q = rotate(keys, at(keys, self.block), self.base), rotate(q, at(q, self.tile) // self.block * self.block, self.base)
        if self.queries != "mean":
            keys = keys.repeat_interleave(self.heads // self.kv, 1)
        s = torch.einsum("thd,bhd->htb", q, keys) * self.d ** -0.5
        unseen = at(keys, self.block)[None] > at(q, self.tile)[:, None] + self.tile - 1
        return s.masked_fill(unseen, -torch.inf)


class DecodeGate(nn.Module):
    """One layer's: single queries against blocks of keys, a list a group of heads."""

    def __init__(self, model, block, seed):
        super().__init__()
        self.kv, self.d, self.base, self.block = model.kv_heads, model.head, model.rope_base, block
        group = model.heads // model.kv_heads
        g = torch.Generator().manual_seed(seed)
        self.key = nn.Parameter(torch.randn(self.kv, self.d, 3 * self.d, generator=g) * (3 * self.d) ** -0.5)
        self.query = nn.Parameter(torch.randn(self.kv, self.d, group * self.d, generator=g) * (group * self.d) ** -0.5)
        self.key_norm, self.query_norm = nn.Parameter(torch.ones(self.d)), nn.Parameter(torch.ones(self.d))

    @staticmethod
    def norm(x, weight):
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight

    def forward(self, q, k, rows):
        """q, k as above, rows [n] of the queries -> logits [kv, n, blocks]."""
        keys = torch.einsum("bhi,hoi->bho", pooled(k, self.block), self.key)
        q = torch.einsum("thi,hoi->tho", full(q[rows]).reshape(len(rows), self.kv, -1), self.query)
        starts = torch.arange(len(keys), device=k.device) * self.block
        keys = rotate(self.norm(keys, self.key_norm), starts, self.base)
        q = rotate(self.norm(q, self.query_norm), rows, self.base)
        s = torch.einsum("thd,bhd->htb", q, keys) * self.d ** -0.5
        return s.masked_fill(starts[None] > rows[:, None], -torch.inf)


@torch.no_grad()
def block_probabilities(q, k, block, chunk=1024):
    """q [t, heads, d], k [t, kv, d] after RoPE -> the largest probability of every query in every block of keys, and their
    sum, each [heads, t, blocks]."""
    t, heads, d = q.shape
    q, k = q.transpose(0, 1), k.transpose(0, 1).repeat_interleave(heads // k.shape[1], 0)
    largest, mass = (torch.zeros(heads, t, t // block, device=q.device) for _ in range(2))
    for at in range(0, t, chunk):
        end = min(t, at + chunk)
        s = full(q[:, at:end]) @ full(k[:, :end]).transpose(1, 2) * d ** -0.5
        s[:, :, at:].masked_fill_(torch.ones(end - at, end - at, device=q.device, dtype=torch.bool).triu(1), -torch.inf)
        blocks = s.unflatten(-1, (-1, block))
        of_block = blocks.logsumexp(-1)
        all_ = of_block.logsumexp(-1, keepdim=True)
        largest[:, at:end, :end // block] = (blocks.amax(-1) - all_).exp()
        mass[:, at:end, :end // block] = (of_block - all_).exp()
    return largest, mass


def wanted(probabilities, of):
    """What gates learn, of block_probabilities: --target."""
    return {"max": probabilities[:1], "mass": probabilities[1:], "both": probabilities}[of]


def mean_normalised(targets):
    return sum(t / t.sum(-1, keepdim=True) for t in targets) / len(targets)


def divergence(target, logits):
    """KL(target || softmax), a mean over rows."""
    log_gate = logits.log_softmax(-1).masked_fill(logits == -torch.inf, 0)
    return (torch.special.xlogy(target, target) - target * log_gate).sum(-1).mean()


def prompt_loss(gate, q, k, learned):
    """`learned`: wanted(block_probabilities)."""
    target = mean_normalised([p.unflatten(1, (-1, gate.tile)).amax(2) for p in learned])
    first = target.shape[1] // 4
    return divergence(target[:, first:], gate(q, k)[:, first:])


def decode_loss(gate, q, k, learned, rows):
    target = mean_normalised([p[:, rows].unflatten(0, (gate.kv, -1)).amax(1) for p in learned])
    return divergence(target, gate(q, k, rows))


def sequence(tasks, a, rng, n, planted, split="train"):
    if not planted:
        return tasks.plain(rng, n, split)
    count = int(rng.integers(8, 9 + n // 512))
    return tasks.planted(rng, n, split, count, asked=int(rng.integers(count // 2, count + 1)))[0]


def gates_of(model, a, init, seed):
    """name -> one gate a layer."""
    made = {f"seer_attention-{q}-t{t}": [PromptGate(model, a.block, t, q, init, seed * 1000 + i) for i in range(model.layers)]
            for q in a.queries for t in a.tiles}
    made["seer_attention_r"] = [DecodeGate(model, a.block, seed * 1000 + 500 + i) for i in range(model.layers)]
    return nn.ModuleDict({k: nn.ModuleList(v) for k, v in made.items()}).to(a.device)


def train(model, tasks, a, seed):
    gates, rng = gates_of(model, a, a.init, seed), np.random.default_rng(seed)
    opt = torch.optim.AdamW(gates.parameters(), lr=a.lr, betas=(0.9, 0.95), weight_decay=0.0)
    curve, began, step, done = [], time.time(), 0, 0.0
    while done < 1:
        for group in opt.param_groups:
            group["lr"] = a.lr * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * done))
        n = a.lengths[int(rng.integers(len(a.lengths)))]
        ids = torch.from_numpy(sequence(tasks, a, rng, n, rng.random() < a.planted)).to(a.device)
        rows = torch.from_numpy(np.sort(rng.choice(np.arange(n // 2, n), a.decode_rows, replace=False))).to(a.device)
        seen = {k: 0.0 for k in gates}
        opt.zero_grad()
        for layer, q, k, q_turned, k_turned in layers(model, ids):
            learned = wanted(block_probabilities(q_turned, k_turned, a.block), a.target)
            total = 0.0
            for name, gate in gates.items():
                g = gate[layer]
                loss = prompt_loss(g, q, k, learned) if isinstance(g, PromptGate) else decode_loss(g, q, k, learned, rows)
                seen[name] += loss.item() / model.layers
                total = total + a.loss_scale * loss / model.layers
            total.backward()
        nn.utils.clip_grad_norm_(gates.parameters(), 5.0)
        opt.step()
        done = (time.time() - began) / a.seconds if a.seconds > 0 else (step + 1) / a.steps
        if step % 20 == 0 or done >= 1:
            curve.append({"step": step, "length": n, **{k: round(v, 4) for k, v in seen.items()}})
            print(f"seed {seed} {time.time() - began:.0f} s", curve[-1], flush=True)
        step += 1
    return gates, curve


def best(score, own, k):
    """Mask of the k blocks of the highest score a row, the row's own among them."""
    rows = torch.arange(score.shape[1], device=score.device)
    score = score.clone()
    score[:, rows, own] = torch.inf
    at = score.topk(min(k, score.shape[-1]), -1)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, at.indices, True) & (score > -torch.inf)


def causal_tiles(n, tile, block, device):
    """A tile's own block [tiles], and which blocks it does not see [tiles, blocks]."""
    own = (torch.arange(n // tile, device=device) * tile) // block
    return own, torch.arange(n // block, device=device)[None] > own[:, None]


def tile_scores(model, a, gates, untrained, tile, mass, layer, q, k, q_turned, k_turned):
    """What ranks the blocks of a tile -> {name: shares [heads, tiles, blocks], 0 where nothing is seen}; "best": true mass,
    of `mass` [heads, t, blocks]: block_probabilities."""
    _, unseen = causal_tiles(len(q), tile, a.block, q.device)
    means = full(k_turned).unflatten(0, (-1, a.block)).mean(1).repeat_interleave(model.heads // model.kv_heads, 1)
    mean_q = full(q_turned).unflatten(0, (-1, tile)).mean(1)
    logits = {"mean_pool": torch.einsum("thd,bhd->htb", mean_q, means) * model.head ** -0.5}
    for label, group in (("", gates), ("random ", untrained)):
        logits |= {f"{label}{name}": g[layer](q, k) for name, g in group.items()
                   if isinstance(g[layer], PromptGate) and g[layer].tile == tile}
    shares = {name: s.masked_fill(unseen, -torch.inf).softmax(-1) for name, s in logits.items()}
    return shares | {"best": mass.unflatten(1, (-1, tile)).mean(2)}


@torch.no_grad()
def thresholds(model, tasks, a, gates, untrained, n):
    """{tile: {name: the share above which blocks, with every tile's own, are --density of all}}, on training text."""
    rng, seen = np.random.default_rng(5), {}
    for planted in (False, True):
        ids = torch.from_numpy(sequence(tasks, a, rng, n, planted)).to(a.device)
        for layer, *x in layers(model, ids):
            mass = block_probabilities(*x[2:], a.block)[1]
            for tile in a.tiles:
                own, unseen = causal_tiles(n, tile, a.block, a.device)
                free = ~unseen
                free[torch.arange(len(own), device=a.device), own] = False
                for name, s in tile_scores(model, a, gates, untrained, tile, mass, layer, *x).items():
                    seen.setdefault(tile, {}).setdefault(name, []).append(s[:, free].flatten())
    out = {}
    for tile, of in seen.items():
        own, unseen = causal_tiles(n, tile, a.block, a.device)
        all_ = (~unseen).sum().item()
        share = max(0.0, (a.density * all_ - len(own)) / (all_ - len(own)))
        for name, parts in of.items():
            s = torch.cat(parts).sort(descending=True).values
            out.setdefault(tile, {})[name] = s[int(share * (len(s) - 1))].item()
    return out


@torch.no_grad()
def evaluate(model, tasks, a, gates, n=16384):
    """{kind: {gate: mass held}} on held-out text, by so many blocks a row; {"..., threshold": [mass, density]} by all blocks
    above one share; {"thresholds": those shares}."""
    untrained = gates_of(model, a, "random", 777)
    at = thresholds(model, tasks, a, gates, untrained, n)
    report = {"thresholds": at}
    print(report, flush=True)
    k_blocks = max(1, int((1 - math.sqrt(1 - a.density)) * n / a.block))
    for kind, planted in (("plain", False), ("facts", True)):
        rng, sums, count = np.random.default_rng(99), {}, 0
        for _ in range(a.eval_rows):
            ids = torch.from_numpy(sequence(tasks, a, rng, n, planted, "held")).to(a.device)
            for layer, q, k, q_turned, k_turned in layers(model, ids):
                mass = block_probabilities(q_turned, k_turned, a.block)[1]
                for tile in a.tiles:
                    own, unseen = causal_tiles(n, tile, a.block, a.device)
                    is_own = torch.arange(n // a.block, device=a.device)[None] == own[:, None]
                    scores = tile_scores(model, a, gates, untrained, tile, mass, layer, q, k, q_turned, k_turned)
                    for name, s in scores.items():
                        key = name if name.endswith(f"t{tile}") else f"{name}-t{tile}"
                        some = best(s.masked_fill(unseen, -torch.inf), own, k_blocks)
                        above = ((s > at[tile][name]) | is_own) & ~unseen
                        held = [(scores["best"] * mask).sum(-1)[:, n // tile // 4:].mean() for mask in (some, above)]
                        sums[key] = sums.get(key, 0.0) + held[0]
                        sums[f"{key}, threshold"] = sums.get(f"{key}, threshold", 0.0) + torch.stack(
                            (held[1], above.sum() / (~unseen).sum() / model.heads))
                rows = torch.arange(n // 2, n, 8, device=a.device)
                of_row = mass[:, rows].unflatten(0, (model.kv_heads, -1)).mean(1)
                own = rows // a.block
                group_q = full(q_turned[rows]).unflatten(1, (model.kv_heads, -1)).mean(2)
                means = full(k_turned).unflatten(0, (-1, a.block)).mean(1)
                scores = {"best": of_row, "mean_pool": torch.einsum("thd,bhd->htb", group_q, means),
                          "seer_attention_r": gates["seer_attention_r"][layer](q, k, rows),
                          "random seer_attention_r": untrained["seer_attention_r"][layer](q, k, rows)}
                unseen = torch.arange(n // a.block, device=a.device)[None] > own[:, None]
                for name, s in scores.items():
                    held = (of_row * best(s.masked_fill(unseen, -torch.inf), own, k_blocks)).sum(-1)
                    sums[f"decode {name}"] = sums.get(f"decode {name}", 0.0) + held.mean()
                count += 1
        report[kind] = {k: np.round((v / count).tolist(), 4).tolist() for k, v in sums.items()}
        print(kind, report[kind], flush=True)
    return report


@torch.no_grad()
def export(model, tasks, a, name, gates, seed, path):
    """Weights as F16, and what the gates say of a few keys and queries of the last layer, which a test reproduces."""
    decode, first = isinstance(gates[0], DecodeGate), gates[0]
    method = "seer_attention_r" if decode else "seer_attention"
    tensors = []
    for i, g in enumerate(gates):
        for part, w in g.named_parameters():
            w.copy_(w.half().float())
            kind = gguf.TYPE_F16 if w.ndim > 1 else gguf.TYPE_F32
            tensors.append((f"{method}.{i}.{part}", w.flatten(0, 1).cpu().numpy() if w.ndim > 1 else w.cpu().numpy(), kind))
    n = 4 * a.block
    ids = torch.from_numpy(tasks.plain(np.random.default_rng(1000 + seed), n, "held")).to(a.device)
    *_, (layer, q, k, _, _) = layers(model, ids)
    q, k = q.half().float(), k.half().float()
    logits = gates[layer](q, k, torch.arange(n, device=a.device)) if decode else gates[layer](q, k)
    tensors += [("golden.q", q.flatten(1).cpu().numpy(), gguf.TYPE_F16), ("golden.k", k.flatten(1).cpu().numpy(), gguf.TYPE_F16),
                ("golden.gate", logits.softmax(-1).flatten(0, 1).cpu().numpy(), gguf.TYPE_F32)]
    u, s, key = gguf.U32, gguf.STRING, gguf.key
    ints = {"layers": model.layers, "heads": model.heads, "kv_heads": model.kv_heads, "dim": model.head, "block": a.block}
    if not decode:
        ints |= {"tile": first.tile, "query_maps": int(first.queries != "mean")}
    gguf.write(path, [key("general.architecture", s, "sluice-router"), key("general.license", s, "apache-2.0"),
                      key("sluice.method", s, method), key("sluice.model", s, model.name), key("sluice.seed", u, seed)] +
               [key(f"sluice.{method}.{k}", u, v) for k, v in ints.items()], tensors)


def main():
    a = P.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    os.makedirs(a.out, exist_ok=True)
    model = FrozenLlama(a.model, a.device)
    model.w = {k: v.bfloat16() if v.ndim > 1 else v for k, v in model.w.items()}
    tasks = Tasks(a.corpus, model.tokenizer(), a.megabytes, 1, spaces=a.spaces)
    print({k: len(v) for k, v in tasks.streams.items()}, flush=True)
    for seed in a.seeds:
        began = time.time()
        gates, curve = train(model, tasks, a, seed)
        report = {"seed": seed, "model": model.name, "args": vars(a), "seconds": time.time() - began, "curve": curve,
                  "mass": evaluate(model, tasks, a, gates)}
        for name, of_layers in gates.items():
            export(model, tasks, a, name, of_layers, seed, os.path.join(a.out, f"{name}-s{seed}.gguf"))
        with open(os.path.join(a.out, f"seer_attention-s{seed}.json"), "w") as f:
            json.dump(report, f, indent=1)


if __name__ == "__main__":
    main()
