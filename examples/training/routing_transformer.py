#!/usr/bin/env python3
"""Trains a small decoder from scratch whose attention is the Routing Transformer's (arXiv 2003.05997): half of the heads
see a window; in the others every centroid takes the queries and the keys that are most like it, and attention runs inside
the clusters.

Queries and keys are normalised (layer norm without weights); a token in several clusters gets the mean of its outputs over
those where it sees a key, and zeros where there is none. Clusters are chosen over the whole sequence, so which tokens share
one is not causal; what is attended is. Inferred: clusters come from queries and keys before RoPE. Upstream often shares
queries and keys (--shared).

A commitment loss draws tokens to centroids, and centroids follow them: the tokens that are nearest to each, themselves kept
at the length of a token, as a port has it (--follow nearest), or the members of its cluster (--follow members, published,
with --commitment 0.25). Members of clusters that overlap draw all centroids to one place, and what no cluster takes is
never learned. One GPU, some minutes. Example:
  routing_transformer.py --out out --seed 1; routing_transformer.py --out out --seed 1 --select random
"""
import os
import sys

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "common"))
import from_scratch  # noqa: E402
import gguf  # noqa: E402
import planted  # noqa: E402
from decoder import Attention, band, masked  # noqa: E402
from frozen_llama import full  # noqa: E402


def options(p):
    p.add_argument("--clusters", type=int, default=8)
    p.add_argument("--members", type=int, default=0, help="of a cluster; 0: tokens / clusters")
    p.add_argument("--window", type=int, default=32, help="of the local heads")
    p.add_argument("--shared", action="store_true",
                   help="the keys of routed heads are their queries too; a token then sees its own key only where it sees no other")
    p.add_argument("--decay", type=float, default=0.99, help="of centroids; published 0.999, with far more steps")
    p.add_argument("--follow", choices=["nearest", "members"], default="nearest",
                   help="what centroids follow: the tokens that they are nearest to, or the members of their clusters")
    p.add_argument("--commitment", type=float, default=0.01, help="weight of the loss that draws members to centroids")


class RoutingTransformer(Attention):
    def __init__(self, a):
        super().__init__(a)
        self.local = self.heads // 2
        assert self.local % (self.heads // self.kv_heads) == 0, "half of the heads must be whole groups"
        self.shared, self.nearest = a.shared, a.follow == "nearest"
        self.members, self.window, self.decay, self.commitment = a.members, a.window, a.decay, a.commitment
        self.register_buffer("centroids", torch.randn(self.heads - self.local, a.clusters, self.d))
        self.commit, self.means = 0.0, None

    def prepared(self, q, k):
        q, k = F.layer_norm(full(q), (self.d,)), F.layer_norm(full(k), (self.d,))
        if self.shared:
            q = torch.cat((q[:, :, :self.local], k.repeat_interleave(self.heads // self.kv_heads, 2)[:, :, self.local:]), 2)
        return q, k

    def clusters(self, x):
        """x [b, routed heads, t, d] -> the members of every cluster, ascending, [b, routed heads, clusters, members]."""
        t, like = x.shape[2], torch.einsum("bhtd,hcd->bhct", full(x.detach()), self.centroids.to(full(x)))
        if self.drawn:
            like = self.uniform(like)
        members = self.members or max(1, t // self.centroids.shape[1])
        return like.topk(min(members, t), -1).indices.sort(-1).values

    @staticmethod
    def gathered(x, at):
        """x [b, h, t, d], at [b, h, c, w] -> [b, h, c, w, d]."""
        return x.gather(2, at.flatten(2)[..., None].expand(-1, -1, -1, x.shape[-1])).unflatten(2, at.shape[2:])

    def attend(self, h, q_pre, k_pre, q, k, v):
        local, kv_local, group = self.local, self.local // (self.heads // self.kv_heads), self.heads // self.kv_heads
        t = h.shape[1]
        near = masked(q[:, :, :local], k[:, :, :kv_local], v[:, :, :kv_local].to(q.dtype), band(t, self.window, h.device))
        heads = lambda x: x[:, :, local:].transpose(1, 2)  # noqa: E731
        grouped = lambda x: x[:, :, kv_local:].transpose(1, 2).repeat_interleave(group, 1)  # noqa: E731
        queries, keys = heads(q_pre), grouped(k_pre)
        at_q, at_k = self.clusters(queries), self.clusters(keys)
        logits = torch.einsum("bhcwd,bhcsd->bhcws", self.gathered(heads(q), at_q), self.gathered(grouped(k), at_k)) * self.d ** -0.5
        seen = at_k[..., None, :] <= at_q[..., :, None]
        if self.shared:
            others = seen & (at_k[..., None, :] != at_q[..., :, None])
            seen = torch.where(others.any(-1, keepdim=True), others, seen)
        p = full(logits).masked_fill(~seen, -1e30).softmax(-1) * seen
        o = torch.einsum("bhcws,bhcsd->bhcwd", p, full(self.gathered(grouped(v), at_k)))
        one = seen.any(-1)  # of its cluster a query sees a key
        where = at_q.flatten(2)[..., None]
        total = torch.zeros(*queries.shape, device=o.device, dtype=o.dtype)
        total = total.scatter_add(2, where.expand(-1, -1, -1, self.d), o.flatten(2, 3))
        number = torch.zeros(*queries.shape[:3], 1, device=o.device, dtype=o.dtype)
        number = number.scatter_add(2, where, one.flatten(2)[..., None].to(o.dtype))
        routed = (total / number.clamp(min=1)).transpose(1, 2)
        if self.training and not self.measure:
            if self.nearest:
                self.follow_nearest(torch.cat((full(queries), full(keys)), 2))
            else:
                self.follow_members((self.gathered(full(queries), at_q), self.gathered(full(keys), at_k)))
        if self.measure:
            each = seen.sum() / h.shape[0]
            self.pairs = ((each + local * band(t, self.window, h.device).sum()) / self.heads).item()
        return torch.cat((full(near), full(routed)), 2)

    def follow_nearest(self, x):
        """x [b, routed heads, tokens, d]. A centroid that is nearest to none begins anew at some token."""
        at, count = x.detach(), self.centroids.shape[1]
        some = at[0, :, torch.randint(at.shape[2], (count,), device=x.device, generator=self.noise)]
        one = F.one_hot(torch.einsum("bhtd,hcd->bhtc", at, self.centroids.to(x)).argmax(-1), count).to(x)
        number = one.sum((0, 2))[..., None]
        self.centroids.copy_(torch.where(number > 0, self.centroids.to(x), some))
        self.means = torch.where(number > 0, torch.einsum("bhtc,bhtd->hcd", one, at) / number.clamp(min=1), some)
        own = torch.einsum("bhtc,hcd->bhtd", one, self.centroids.to(x))
        self.commit = self.commitment * (x - own).pow(2).mean()

    def follow_members(self, members):
        centroids = self.centroids[None, :, :, None].to(members[0])
        self.commit = self.commitment * sum((x - centroids).pow(2).mean() for x in members) / 2
        self.means = sum(x.detach().mean((0, 3)) for x in members) / 2

    def loss(self):
        return self.commit

    @torch.no_grad()
    def after_step(self):
        self.centroids.lerp_(self.means.to(self.centroids), 1 - self.decay)
        if self.nearest:  # else one of a longer mean would be nearest to everything
            self.centroids.copy_(F.layer_norm(self.centroids, (self.d,)))


@torch.no_grad()
def export(model, a, path):
    """The last layer's centroids, and what its attention makes of one sequence, which a test reproduces."""
    x = model.attentions()[-1]
    x.centroids.copy_(x.centroids.half().float())
    ints = {"layers": 1, "heads": x.heads - x.local, "clusters": a.clusters, "dim": x.d}
    golden = from_scratch.golden(model, a, planted.batch(1, 128, torch.Generator(a.device).manual_seed(77))[0])
    numbers = {"heads": x.heads, "kv_heads": x.kv_heads, "head_dim": x.d, "width": a.width, "window": x.window}
    from_scratch.write_gguf(path, "routing_transformer", a, {f"routing_transformer.{k}": v for k, v in ints.items()} |
                            {f"golden.{k}": v for k, v in numbers.items()},
                            [("routing_transformer.0.centroids", x.centroids.cpu().numpy(), gguf.TYPE_F16)] + golden)


if __name__ == "__main__":
    from_scratch.main(__doc__, "routing_transformer", RoutingTransformer, options, export)
