#!/usr/bin/env python3
"""Trains a small decoder from scratch whose attention is superlinear (arXiv 2601.18401): a search query scores a few anchors
whose distances grow ever faster, and attention reads a window and, for each of the best anchors, a span of keys before it.

The outputs over window and span are summed with the softmax of the chosen anchors' scores, and the search query learns
through it. Inferred, as in the router: the search query is turned to its position; its scores have no 1/sqrt(d). One GPU,
some minutes. Example:
  superlinear.py --out out --seed 1; superlinear.py --out out --seed 1 --select random
"""
import math
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "common"))
import from_scratch  # noqa: E402
import gguf  # noqa: E402
import planted  # noqa: E402
from decoder import Attention, linear, masked  # noqa: E402
from frozen_llama import full  # noqa: E402
from rope import rotate  # noqa: E402


def options(p):
    p.add_argument("--sw-index", type=int, default=5, help="the window has (sw_index + 1)^(1/p) - 1 keys")
    p.add_argument("--k", type=int, default=2, help="spans")
    p.add_argument("--p", type=float, default=0.5)
    p.add_argument("--e", type=float, default=0.5)
    p.add_argument("--back", type=float, default=2, help="a span begins back (t + 1)^e before its anchor")
    p.add_argument("--ahead", type=float, default=0)


class Superlinear(Attention):
    def __init__(self, a):
        super().__init__(a)
        self.sw_index, self.k_spans, self.p, self.e, self.back, self.ahead = a.sw_index, a.k, a.p, a.e, a.back, a.ahead
        self.search = linear(a.width, self.heads * self.d)

    def anchors(self, t, device):
        """[t, anchors] positions, negative where there is none, and the window's keys."""
        distance = lambda i: math.floor(i ** (1 / self.p))  # noqa: E731
        far, i = [], self.sw_index + 1
        while distance(i) <= t:
            far.append(distance(i))
            i += 1
        return torch.arange(1, t + 1, device=device)[:, None] - torch.tensor(far, device=device), distance(self.sw_index + 1) - 1

    def attend(self, h, q_pre, k_pre, q, k, v):
        b, t = h.shape[:2]
        at, s = torch.arange(t, device=h.device)[:, None], torch.arange(t, device=h.device)
        anchors, window = self.anchors(t, h.device)
        near = (s <= at) & (s > at - window)
        count = anchors.shape[1]
        if count == 0:
            self.pairs = near.sum().item() if self.measure else 0
            return masked(q, k, v, near)
        search = rotate(self.search(h).unflatten(-1, (self.heads, self.d)), at[:, 0], self.base)
        group = self.heads // self.kv_heads
        score = torch.einsum("bthd,bshd->bhts", search, k.to(search.dtype).repeat_interleave(group, 2))
        score = full(score.gather(-1, anchors.clamp(min=0).expand(b, self.heads, -1, -1)))
        missing = anchors < 0
        score = score.masked_fill(missing, -torch.inf)
        rank = self.uniform(score).masked_fill(missing, -torch.inf) if self.drawn else score
        chosen = rank.topk(min(self.k_spans, count), -1).indices  # [b, heads, t, k]
        score = score.gather(-1, chosen)
        none = score[..., :1] == -torch.inf
        gates = torch.cat((score[..., :1].masked_fill(none, 0), score[..., 1:]), -1).softmax(-1)
        size = torch.tensor([float(x + 1) ** self.e for x in range(t)], dtype=torch.float64)
        before, after = ((x * size).ceil().long().to(h.device)[:, None] for x in (self.back, self.ahead))
        first = (anchors - before).clamp(min=0)  # [t, anchors]
        last = torch.minimum(anchors + after, at - window)
        last = last.masked_fill(missing, -1)
        o, read = 0, near
        for i in range(chosen.shape[-1]):
            pick = lambda x: x.expand(*chosen.shape[:2], -1, -1).gather(-1, chosen[..., i:i + 1])  # noqa: E731
            seen = ((s >= pick(first)) & (s <= pick(last))) | near
            o = o + gates[..., i:i + 1].transpose(1, 2) * full(masked(q, k, v, seen))
            read = read | seen
        if self.measure:
            self.pairs = (read.sum() / (b * self.heads)).item() + (~missing).sum().item()
        return o


@torch.no_grad()
def export(model, a, path):
    """The last layer, its map rounded to F16, and what its attention makes of one sequence, which a test reproduces."""
    x = model.attentions()[-1]
    x.search.weight.copy_(x.search.weight.half().float())
    ints = {"layers": 1, "heads": x.heads, "head_dim": x.d, "width": a.width}
    golden = from_scratch.golden(model, a, planted.batch(1, 128, torch.Generator(a.device).manual_seed(77))[0])
    from_scratch.write_gguf(path, "superlinear", a, {f"superlinear.{k}": v for k, v in ints.items()} |
                            {f"golden.{k}": getattr(a, k) for k in ("sw_index", "k", "p", "e", "back", "ahead")},
                            [("superlinear.0.query", x.search.weight.float().cpu().numpy(), gguf.TYPE_F16)] + golden)


if __name__ == "__main__":
    from_scratch.main(__doc__, "superlinear", Superlinear, options, export)
