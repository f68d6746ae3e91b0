#!/usr/bin/env python3
"""Trains a small decoder from scratch whose attention is NSA, native sparse attention (arXiv 2502.11089): compressed
blocks, blocks selected by what the compressed ones got, and a window, each a softmax of its own, summed with gates.

All branches share queries, keys and values (the paper's project keys and values anew for each), and the compression is
a linear map of a block (the paper: an MLP). The selection learns through the compressed branch alone, and a block that
it leaves out has no gradient that would tell what it lacks: steps that select at random (--explore, inferred) give one.
One GPU, some minutes. Example:
  nsa.py --out out --seed 1; nsa.py --out out --seed 1 --select random; nsa.py --out out --seed 1 --select dense
"""
import os
import sys

import torch
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "common"))
import from_scratch  # noqa: E402
import gguf  # noqa: E402
import planted  # noqa: E402
from decoder import Attention, band, linear, masked  # noqa: E402
from frozen_llama import full  # noqa: E402
from rope import rotate  # noqa: E402


def options(p):
    p.set_defaults(explore=0.8)
    p.add_argument("--l", type=int, default=16, help="keys of a compressed block")
    p.add_argument("--stride", type=int, default=8, help="keys from one to the next; divides l")
    p.add_argument("--block", type=int, default=16, help="keys of a selection block, a multiple of l")
    p.add_argument("--n", type=int, default=4, help="blocks selected, forced ones included")
    p.add_argument("--init", type=int, default=1, help="first blocks forced")
    p.add_argument("--local", type=int, default=1, help="last blocks forced, the query's own included")
    p.add_argument("--window", type=int, default=32)


def stencil(compressed, blocks, l, stride, block):
    """[compressed, blocks]: how many strides a compressed block shares with a selection block."""
    i, j = torch.arange(compressed)[:, None] * stride, torch.arange(blocks)[None] * block
    shared = torch.minimum(i + l, j + block) - torch.maximum(i, j)
    return shared.clamp(min=0) // stride


class Nsa(Attention):
    def __init__(self, a):
        super().__init__(a)
        self.l, self.stride, self.block, self.n = a.l, a.stride, a.block, a.n
        self.init, self.local, self.window = a.init, a.local, a.window
        wide = self.l * self.d
        self.position = nn.Parameter(torch.randn(self.kv_heads, self.l, self.d) * 0.1)
        # What a block is mapped to begins as its mean, so that it is worth attending from the first step.
        mean = torch.eye(self.d).repeat(1, self.l) / self.l
        draw = lambda: nn.Parameter(mean + 0.5 * torch.randn(self.kv_heads, self.d, wide) * wide ** -0.5)  # noqa: E731
        self.key_map, self.value_map = draw(), draw()
        self.gate = linear(a.width, 3 * self.heads)
        self.gate_bias = nn.Parameter(torch.zeros(3 * self.heads))

    def windows(self, x):
        """x [b, t, kv, d] -> the compressed blocks' keys [b, n, kv, l, d]."""
        return x.unfold(1, self.l, self.stride).transpose(-1, -2)

    def compress(self, x, weights):
        return torch.einsum("bnki,koi->bnko", x.flatten(-2), weights.to(x.dtype))

    @torch.no_grad()
    def select(self, p, t):
        """p [b, heads, t, compressed] -> [b, kv, t, t], which keys' blocks are selected."""
        blocks = -(-t // self.block)
        at = torch.arange(t, device=p.device) // self.block
        j = torch.arange(blocks, device=p.device)
        score = full(p) @ stencil(p.shape[-1], blocks, self.l, self.stride, self.block).to(full(p))
        score = score.unflatten(1, (self.kv_heads, -1)).sum(2)
        if self.drawn:
            score = self.uniform(score)
        forced = (j < self.init) | ((j > at[:, None] - self.local) & (j <= at[:, None]))
        score = score.masked_fill(forced, torch.inf).masked_fill(j > at[:, None], -torch.inf)
        best = score.topk(min(self.n, blocks), -1).indices
        taken = torch.zeros_like(score, dtype=torch.bool).scatter_(-1, best, True) & (j <= at[:, None])
        causal = torch.ones(t, t, dtype=torch.bool, device=p.device).tril()
        return taken.repeat_interleave(self.block, -1)[..., :t] & causal

    def attend(self, h, q_pre, k_pre, q, k, v):
        t = h.shape[1]
        gates = (self.gate(h) + self.gate_bias).sigmoid().unflatten(-1, (self.heads, 3))
        starts = torch.arange(0, t - self.l + 1, self.stride, device=h.device)
        keys = rotate(self.compress(self.windows(k_pre) + self.position.to(k_pre.dtype), self.key_map), starts, self.base)
        values = self.compress(self.windows(v), self.value_map)
        group = self.heads // self.kv_heads
        logits = torch.einsum("bthd,bnhd->bhtn", q, keys.repeat_interleave(group, 2)) * self.d ** -0.5
        seen = starts + self.l - 1 <= torch.arange(t, device=h.device)[:, None]
        p = full(logits).masked_fill(~seen, -1e30).softmax(-1) * seen  # 0 where no block is seen
        chosen = self.select(p.detach(), t)
        branches = (torch.einsum("bhtn,bnhd->bthd", p.to(values.dtype), values.repeat_interleave(group, 2)),
                    masked(q, k, v, chosen.repeat_interleave(group, 1)),
                    masked(q, k, v, band(t, self.window, h.device)))
        if self.measure:
            read = chosen | band(t, self.window, h.device)
            self.pairs = (read.sum() / (read.shape[0] * self.kv_heads) + seen.sum()).item()
        return sum(gates[..., i:i + 1] * full(o) for i, o in enumerate(branches))


@torch.no_grad()
def export(model, a, path):
    """The last layer, its maps rounded to F16, and what its attention makes of one sequence, which a test reproduces."""
    x = model.attentions()[-1]
    for w in (x.key_map, x.value_map, x.position, x.gate.weight):
        w.copy_(w.half().float())
    weights = {"position": x.position, "key_map": x.key_map, "value_map": x.value_map, "gate": x.gate.weight,
               "gate_bias": x.gate_bias}
    tensors = [(f"nsa.0.{name}", w.float().cpu().numpy(), gguf.TYPE_F16 if w.ndim > 1 else gguf.TYPE_F32)
               for name, w in weights.items()]
    ints = {"layers": 1, "heads": x.heads, "kv_heads": x.kv_heads, "head_dim": x.d, "value_dim": x.d, "width": a.width}
    golden = from_scratch.golden(model, a, planted.batch(1, 128, torch.Generator(a.device).manual_seed(77))[0])
    from_scratch.write_gguf(path, "nsa", a, {f"nsa.{k}": v for k, v in ints.items()} |
                            {f"golden.{k}": getattr(x, k) for k in ("l", "stride", "block", "n", "init", "local", "window")},
                            tensors + golden)


if __name__ == "__main__":
    from_scratch.main(__doc__, "nsa", Nsa, options, export)
