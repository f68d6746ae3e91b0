#!/usr/bin/env python3
"""Trains Flux Attention's layer routers (arXiv 2604.07394) on a frozen language model and exports them as GGUF.

Every layer computes full and streaming attention; a router that sees pooled pre-RoPE queries mixes them with one
straight-through gate a sequence. The loss is the language model's plus a Lagrangian sparsity term for each task:
retrieval (facts asked about at the end) and holistic (plain text, half of it with facts that nobody asks about).

One GPU, about two minutes a seed. Example:
  flux_attention.py --model sluice-mini-q8_0.gguf --corpus corpus.txt.xz --out out --seeds 1 2 3
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
import torch.utils.checkpoint
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "common"))
import gguf  # noqa: E402
from frozen_llama import FrozenLlama, full  # noqa: E402
from gates import gumbel  # noqa: E402
from tasks import Tasks  # noqa: E402

P = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
P.add_argument("--model", required=True)
P.add_argument("--corpus", required=True)
P.add_argument("--out", required=True)
P.add_argument("--seeds", type=int, nargs="+", default=[1])
P.add_argument("--steps", type=int, default=700)
P.add_argument("--batch-tokens", type=int, default=32768)
P.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
P.add_argument("--lr", type=float, default=5e-4)
P.add_argument("--lambda-lr", type=float, default=1.5e-2,
               help="published: 1e-3, with 16 times the samples a step; at that rate the small batches leave one layer full")
P.add_argument("--pool", type=int, default=100)
P.add_argument("--sink", type=int, default=64)
P.add_argument("--window", type=int, default=256)
P.add_argument("--target-retrieval", type=float, default=0.45)
P.add_argument("--target-holistic", type=float, default=1.0)
P.add_argument("--init", choices=["full", "hf"], default="full", help="full: start at p(full) = 0.989; hf: at 0.5")
P.add_argument("--mix", choices=["ste", "soft"], default="ste")
P.add_argument("--labels", choices=["answers", "all"], default="answers",
               help="tokens that carry the language-model loss of retrieval prompts")
P.add_argument("--megabytes", type=int, default=24, help="corpus text to read")
P.add_argument("--without", nargs="*", default=[], help="token files (.u16); documents that share text with them are left out")
P.add_argument("--device", default="cuda")
P.add_argument("--eval-rows", type=int, default=8)
A = P.parse_args()
DEV = A.device
TASKS = ("retrieval", "holistic")
TARGET = {"retrieval": A.target_retrieval, "holistic": A.target_holistic}


class Router(nn.Module):
    """Pooled query [d] -> logits (sparse, full)."""

    def __init__(self, d):
        super().__init__()
        sizes = [(d, 8 * d), (8 * d, 2 * d), (2 * d, 4 * d), (4 * d, d), (d, 2)]
        self.linear = nn.ModuleList(nn.Linear(i, o) for i, o in sizes)
        for m in self.linear:
            if A.init == "full":
                nn.init.kaiming_uniform_(m.weight, nonlinearity="relu")
            else:
                nn.init.normal_(m.weight, std=0.02)
            nn.init.zeros_(m.bias)
        if A.init == "full":
            nn.init.zeros_(self.linear[-1].weight)
            self.linear[-1].bias.data[1] = 4.5

    def forward(self, c):
        e0, e1, h0, h1, h2 = self.linear
        return h2(F.silu(h1(F.silu(h0(e1(F.silu(e0(c))))))))


def pool(q, prompt):
    """q [b, t, heads, d] before RoPE; prompt: tokens per sample that the pool may see -> [b, d]."""
    rows = []
    for i, n in enumerate(prompt):
        p = min(A.pool, n)
        rows.append(full(torch.cat([q[i, :p], q[i, n - p:n]])).mean((0, 1)))
    return torch.stack(rows)


def gate(logits, tau, generator):
    """Straight-through Gumbel argmax; the gradient goes through the tempered softmax."""
    hard, soft = gumbel(logits, tau, generator)
    return (soft if A.mix == "soft" else hard)[:, 1]


class Routed:
    def __init__(self, model, routers):
        self.m, self.routers, self.masks = model, routers, {}

    def mask(self, t):
        if t not in self.masks:
            q, k = torch.arange(t, device=DEV)[:, None], torch.arange(t, device=DEV)[None]
            self.masks[t] = (k <= q) & ((k < A.sink) | (k > q - A.window))
        return self.masks[t]

    def forward(self, ids, prompt, decide, dtype=torch.bfloat16):
        """decide(layer, features [b, d]) -> gate [b], 1 for full. Returns (hidden, gates [b, layers])."""
        m, gates = self.m, []
        x, angles = m.embed(ids, dtype), m.angles(ids.shape[1])
        for layer in range(m.layers):
            q, k, v = m.qkv(layer, m.norm(f"blk.{layer}.attn_norm", x))
            z = decide(layer, pool(q, prompt))
            gates.append(z)
            q, k = m.rotate(q, angles), m.rotate(k, angles)
            zz = z.to(dtype)[:, None, None]
            o = zz * m.attend(q, k, v) + (1 - zz) * m.attend(q, k, v, self.mask(ids.shape[1]))
            x = x + m.out(layer, o)
            x = x + m.ffn(layer, m.norm(f"blk.{layer}.ffn_norm", x))
        return x, torch.stack(gates, 1)


def nll(model, x, ids, weight):
    total = 0.0
    target, w, h = ids[:, 1:].reshape(-1), weight[:, 1:].reshape(-1), x[:, :-1].reshape(-1, x.shape[-1])
    rows = w.nonzero()[:, 0]
    for part in rows.split(16384):  # vocabulary logits of few rows at a time
        total = total + torch.utils.checkpoint.checkpoint(
            lambda r: (F.cross_entropy(full(model.logits(h[r])), target[r], reduction="none") * w[r]).sum(), part,
            use_reentrant=False)
    return total / w.sum()


def draw(tasks, rng, task, n, split="train", asked=None):
    if task == "retrieval":
        ids, answer, prompt = tasks.planted(rng, n, split, asked=asked)
        return ids, answer.astype(np.float32) if A.labels == "answers" else np.ones(n, np.float32), prompt, answer
    if rng.random() < 0.5:
        ids, _, prompt = tasks.planted(rng, n, split, asked=0)
    else:
        ids, prompt = tasks.plain(rng, n, split), n
    return ids, np.ones(n, np.float32), prompt, np.zeros(n, bool)


def constraint(lam, omega, target):
    """The Lagrangian term of one task: omega [b], the sparse share of every sample's layers; lam: its two multipliers."""
    off = omega - target
    return (lam[0] * off.abs() + lam[1] * off ** 2).mean()


def ascent_of(lam):
    """The multipliers climb: they grow for as long as the target is missed."""
    return torch.optim.AdamW([lam], lr=A.lambda_lr, betas=(0.9, 0.95), weight_decay=0.0, maximize=True)


def train(model, tasks, seed):
    torch.manual_seed(seed)
    rng, noise = np.random.default_rng(seed), torch.Generator(DEV).manual_seed(seed)
    routers = nn.ModuleList(Router(model.head) for _ in range(model.layers)).to(DEV)
    routed = Routed(model, routers)
    lam = nn.Parameter(torch.rand(2, len(TASKS), device=DEV) * 0.5)
    opt = torch.optim.AdamW(routers.parameters(), lr=A.lr, betas=(0.9, 0.95), weight_decay=0.1)
    ascent = ascent_of(lam)
    curve, warm = [], max(1, int(0.2 * A.steps))
    for step in range(A.steps):
        scale = min(1.0, (step + 1) / warm) * (
            1.0 if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, A.steps - warm))))
        for g, lr in ((opt, A.lr), (ascent, A.lambda_lr)):
            g.param_groups[0]["lr"] = lr * max(scale, 1e-7)
        anneal = min(1.0, step / (0.6 * A.steps))
        tau = 1.0 + 0.5 * 0.5 * (1 + math.cos(math.pi * anneal))
        n = A.lengths[int(rng.integers(len(A.lengths)))]
        names = [TASKS[i % 2] for i in range(max(2, A.batch_tokens // n))]
        rows = [draw(tasks, rng, t, n) for t in names]
        ids = torch.from_numpy(np.stack([r[0] for r in rows])).to(DEV)
        weight = torch.from_numpy(np.stack([r[1] for r in rows])).to(DEV)
        x, z = routed.forward(ids, [r[2] for r in rows], lambda l, c: gate(routers[l](c), tau, noise))
        omega = 1 - z.mean(1)
        lm = sparsity = 0.0
        seen = {}
        for k, task in enumerate(TASKS):
            at = torch.tensor([i for i, t in enumerate(names) if t == task], device=DEV)
            lm = lm + nll(model, x[at], ids[at], weight[at]) / len(TASKS)
            sparsity = sparsity + constraint(lam[:, k], omega[at], TARGET[task]) / len(TASKS)
            seen[task] = omega[at].mean().item()
        loss = lm + sparsity
        opt.zero_grad()
        ascent.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(routers.parameters(), 5.0)
        opt.step()
        ascent.step()
        if step % 10 == 0 or step + 1 == A.steps:
            curve.append({"step": step, "lm": round(lm.item(), 4), "tau": round(tau, 3),
                          **{f"omega_{k}": round(v, 3) for k, v in seen.items()},
                          "lambda": [round(v, 3) for v in lam.flatten().tolist()]})
            if step % 50 == 0 or step + 1 == A.steps:
                print(f"seed {seed}", curve[-1], flush=True)
    return routed, curve


@torch.no_grad()
def evaluate(model, tasks, routed, decide, n, seed=99):
    """Measured sparsity, retrieval accuracy and plain-text likelihood on held-out text."""
    rng, out = np.random.default_rng(seed), {}
    hit = asked = 0
    for task in TASKS:
        omegas, loss = [], []
        for _ in range(A.eval_rows):
            ids, weight, prompt, answer = draw(tasks, rng, task, n, "held", asked=4)
            t = torch.from_numpy(ids)[None].to(DEV)
            x, z = routed.forward(t, [prompt], decide)
            omegas.append(1 - z.mean().item())
            if task == "retrieval":
                best = model.logits(x[0, :-1]).argmax(-1).cpu().numpy()
                hit += (best == ids[1:])[answer[1:]].sum()
                asked += answer.sum()
            else:
                loss.append(nll(model, x, t, torch.from_numpy(weight)[None].to(DEV)).item())
        out[f"omega_{task}"] = float(np.mean(omegas))
    out["retrieval_accuracy"], out["holistic_nll"] = float(hit / asked), float(np.mean(loss))
    return out


def fixed(modes):
    return lambda layer, c: torch.full((len(c),), float(modes[layer]), device=DEV)


@torch.no_grad()
def export(model, tasks, routed, seed, path):
    rng, tensors = np.random.default_rng(1000 + seed), []
    for layer, r in enumerate(routed.routers):
        for i, name in enumerate(("enc0", "enc1", "head0", "head1", "head2")):
            m = r.linear[i]
            m.weight.copy_(m.weight.half().float())  # what the file holds is what is tested
            tensors += [(f"blk.{layer}.flux.{name}.weight", m.weight.cpu().numpy(), gguf.TYPE_F16),
                        (f"blk.{layer}.flux.{name}.bias", m.bias.cpu().numpy(), gguf.TYPE_F32)]
    prompts, features, logits = [], [], []
    torch.backends.cuda.matmul.allow_tf32 = False

    def decide(layer, c):
        a = routed.routers[layer](c)
        features.append(c[0].cpu().numpy())
        logits.append(a[0].cpu().numpy())
        return (a[:, 1] > a[:, 0]).float()
    for task in ("retrieval", "holistic", "retrieval", "holistic"):
        ids, _, prompt, _ = draw(tasks, rng, task, 1024, "held", asked=1)
        ids = ids[:1000]
        prompts.append(ids)
        routed.forward(torch.from_numpy(ids)[None].to(DEV), [len(ids)], decide, torch.float32)
    tensors += [("golden.prompts", np.stack(prompts), gguf.TYPE_F32), ("golden.features", np.stack(features), gguf.TYPE_F32),
                ("golden.logits", np.stack(logits), gguf.TYPE_F32)]
    k, u, f = gguf.key, gguf.U32, gguf.F32
    keys = [k("general.architecture", gguf.STRING, "sluice-router"), k("general.license", gguf.STRING, "apache-2.0"),
            k("sluice.method", gguf.STRING, "flux_attention"), k("sluice.model", gguf.STRING, model.name),
            k("sluice.seed", u, seed), k("sluice.flux.layers", u, model.layers), k("sluice.flux.dim", u, model.head),
            k("sluice.flux.pool", u, A.pool), k("sluice.flux.sink", u, A.sink), k("sluice.flux.window", u, A.window),
            k("sluice.flux.target_retrieval", f, A.target_retrieval), k("sluice.flux.target_holistic", f, A.target_holistic)]
    gguf.write(path, keys, tensors)


def main():
    os.makedirs(A.out, exist_ok=True)
    model = FrozenLlama(A.model, DEV)
    tasks = Tasks(A.corpus, model.tokenizer(), A.megabytes, 1, A.without)
    print({k: len(v) for k, v in tasks.streams.items()}, flush=True)
    for seed in A.seeds:
        began = time.time()
        routed, curve = train(model, tasks, seed)
        learned = lambda l, c: (lambda a: (a[:, 1] > a[:, 0]).float())(routed.routers[l](c))  # noqa: E731
        report = {"seed": seed, "args": vars(A), "seconds": time.time() - began, "curve": curve, "eval": {}}
        for n in (4096, 8192):
            rows = {"dense": evaluate(model, tasks, routed, fixed([1] * model.layers), n),
                    "sparse": evaluate(model, tasks, routed, fixed([0] * model.layers), n),
                    "learned": evaluate(model, tasks, routed, learned, n)}
            drop = round(rows["learned"]["omega_retrieval"] * model.layers)
            for s in range(5):
                modes = np.ones(model.layers, int)
                modes[np.random.default_rng(s).permutation(model.layers)[:drop]] = 0
                rows[f"random{s}"] = evaluate(model, tasks, routed, fixed(modes), n)
            report["eval"][n] = rows
            for k, v in rows.items():
                print(seed, n, k, {a: round(b, 4) for a, b in v.items()}, flush=True)
        export(model, tasks, routed, seed, os.path.join(A.out, f"flux_attention-s{seed}.gguf"))
        with open(os.path.join(A.out, f"flux_attention-s{seed}.json"), "w") as f:
            json.dump(report, f, indent=1)


if __name__ == "__main__":
    main()
