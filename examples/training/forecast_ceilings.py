#!/usr/bin/env python3
"""How well the output of every attention and FFN unit of a frozen language model can be forecast from the token's own
hidden state, whatever the forecaster: what Informed Routing (arXiv 2510.13831) can hope for on this model.

Reduced-rank ridge regressions in closed form, and a wide network trained on the squared error, which may also see the
mean value vector of the tokens so far: what a token cannot know of its context by itself. Share of the variance explained
on held-out text (R^2), over all positions and without the first ones. One GPU, a minute. Example:
  forecast_ceilings.py --model sluice-mini-q8_0.gguf --corpus corpus.txt.xz --out ceilings.json
"""
import argparse
import json
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "common"))
from frozen_llama import FrozenLlama  # noqa: E402
from tasks import Tasks  # noqa: E402

P = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
P.add_argument("--model", required=True)
P.add_argument("--corpus", required=True)
P.add_argument("--out", required=True, help="JSON file to write")
P.add_argument("--ranks", type=int, nargs="+", default=[64, 128], help="the full rank is added")
P.add_argument("--windows", type=int, default=192, help="of --length tokens, to fit on; a sixth as many to report")
P.add_argument("--length", type=int, default=2048)
P.add_argument("--first", type=int, default=64, help="positions of a window that the second figure leaves out")
P.add_argument("--steps", type=int, default=3000)
P.add_argument("--rows", type=int, default=8192, help="tokens a step")
P.add_argument("--seed", type=int, default=1)
P.add_argument("--megabytes", type=int, default=12)
P.add_argument("--device", default="cuda")


@torch.no_grad()
def observe(model, ids):
    """-> per unit (h, u, mean v so far), each [windows * length, width], of dense windows."""
    x, angles = model.embed(ids), model.angles(ids.shape[1])
    out, many = [], torch.arange(1, ids.shape[1] + 1, device=ids.device)[None, :, None]
    for layer in range(model.layers):
        h = model.norm(f"blk.{layer}.attn_norm", x)
        q, k, v = model.qkv(layer, h)
        u = model.out(layer, model.attend(model.rotate(q, angles), model.rotate(k, angles), v))
        context = v.flatten(2).cumsum(1) / many
        x = x + u
        out.append((h, u, context))
        h = model.norm(f"blk.{layer}.ffn_norm", x)
        u = model.ffn(layer, h)
        x = x + u
        out.append((h, u, context))
    return [tuple(t.flatten(0, 1).half() for t in unit) for unit in out]


def collect(model, tasks, a, split, windows, seed):
    rng, parts = np.random.default_rng(seed), []
    for _ in range(0, windows, 4):
        ids = torch.from_numpy(np.stack([tasks.plain(rng, a.length, split) for _ in range(4)])).to(a.device)
        parts.append(observe(model, ids))
    return [tuple(torch.cat(t) for t in zip(*unit)) for unit in zip(*parts)]


def explained(u, forecast, late):
    """R^2 over all rows, and over the rows of `late`."""
    of = lambda u, f: 1 - ((f - u) ** 2).sum().item() / ((u - u.mean(0)) ** 2).sum().item()  # noqa: E731
    return [round(of(u, forecast), 4), round(of(u[late], forecast[late]), 4)]


def ridge(h, u, ranks, lam=1e-3):
    """Best linear maps of the ranks -> {rank: (weight [in, out], bias)}."""
    h, u = h.double(), u.double()
    mh, mu = h.mean(0), u.mean(0)
    c = (h - mh).T @ (h - mh)
    w = torch.linalg.solve(c + lam * c.diagonal().mean() * torch.eye(len(c), device=c.device, dtype=c.dtype), (h - mh).T @ (u - mu))
    directions = torch.linalg.eigh(w.T @ c @ w).eigenvectors.flip(1)
    out = {}
    for r in ranks:
        wr = w @ directions[:, :r] @ directions[:, :r].T
        out[r] = (wr.float(), (mu - mh @ wr).float())
    return out


def network(x, u, a, seed):
    """width -> 4 width -> width on the squared error, inputs scaled to unit variance."""
    torch.manual_seed(seed)
    mean, scale = x.float().mean(0), x.float().std(0) + 1e-6
    shift, spread = u.float().mean(0), u.float().std()
    net = nn.Sequential(nn.Linear(x.shape[1], 4 * u.shape[1]), nn.SiLU(), nn.Linear(4 * u.shape[1], u.shape[1])).to(a.device)
    opt = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, a.steps)
    gen = torch.Generator(a.device).manual_seed(seed)
    for _ in range(a.steps):
        at = torch.randint(len(x), (a.rows,), device=a.device, generator=gen)
        loss = F.mse_loss(net((x[at].float() - mean) / scale), (u[at].float() - shift) / spread)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
    return lambda x: net((x.float() - mean) / scale).detach() * spread + shift


def main():
    a = P.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    model = FrozenLlama(a.model, a.device)
    tasks = Tasks(a.corpus, model.tokenizer(), a.megabytes, 1)
    train = collect(model, tasks, a, "train", a.windows, a.seed)
    held = collect(model, tasks, a, "held", max(4, a.windows // 6), a.seed + 1)
    late = torch.arange(len(held[0][0]), device=a.device) % a.length >= a.first
    early = torch.arange(len(train[0][0]), device=a.device) % a.length < a.first
    report = {"args": vars(a), "units": {}}
    for i, ((h, u, context), (hh, uu, cc)) in enumerate(zip(train, held)):
        r, uu = {}, uu.float()
        for rank, (w, b) in ridge(h, u, a.ranks + [h.shape[1]]).items():
            r[f"ridge {rank}"] = explained(uu, hh.float() @ w + b, late)
        for rank, (w, b) in ridge(h[~early], u[~early], [h.shape[1]]).items():
            r[f"ridge {rank}, fitted without the first"] = explained(uu, hh.float() @ w + b, late)
        r["network"] = explained(uu, network(h, u, a, a.seed)(hh), late)
        with_context = network(torch.cat([h, context], 1), u, a, a.seed)
        r["network with context"] = explained(uu, with_context(torch.cat([hh, cc], 1)), late)
        name = f"{i // 2}.{'attn' if i % 2 == 0 else 'ffn'}"
        report["units"][name] = r
        print(name, r, flush=True)
    with open(a.out, "w") as f:
        json.dump(report, f, indent=1)


if __name__ == "__main__":
    main()
