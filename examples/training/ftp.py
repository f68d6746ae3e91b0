#!/usr/bin/env python3
"""Trains the router of FTP, fine-grained token-wise pruner (arXiv 2412.11494), on a frozen language model: one router for
all blocks, four factors in, under a schedule of block sparsities that `sluice search-schedule` found with the static router.

The prompt is pruned, the tokens after it run dense over the ragged caches; what is distilled is what the pruned prompt says
about them. One GPU, under a minute a run. Example:
  ftp.py --model sluice-mini-q8_0.gguf --corpus corpus.txt.xz --out out --schedule 0,0.2,0.3,0.4,0.4,0.5 --seeds 1 2 3
"""
import argparse
import json
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "common"))
import gguf  # noqa: E402
from frozen_llama import FrozenLlama  # noqa: E402
from tasks import Tasks  # noqa: E402

P = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
P.add_argument("--model", required=True)
P.add_argument("--corpus", required=True)
P.add_argument("--out", required=True)
P.add_argument("--schedule", required=True, help="sparsity of every block, separated by commas")
P.add_argument("--seeds", type=int, nargs="+", default=[1])
P.add_argument("--variants", nargs="+", default=["full", "nopos", "causal"], choices=["full", "nopos", "causal"],
               help="nopos: without the position factor, an ablation; causal: scores by each token's own query")
P.add_argument("--hidden", type=int, default=64)
P.add_argument("--steps", type=int, default=800)
P.add_argument("--rows", type=int, default=8)
P.add_argument("--length", type=int, default=1152)
P.add_argument("--follow", type=int, default=128, help="tokens after the prompt")
P.add_argument("--lr", type=float, default=3e-3)
P.add_argument("--sparsity-weight", type=float, default=4.0, help="published: 1")
P.add_argument("--sparsity-loss", choices=["symmetric", "one_sided"], default="symmetric", help="published: one_sided")
P.add_argument("--margin", type=float, default=0.01, help="what the symmetric loss aims at beyond the schedule")
P.add_argument("--guide", type=float, default=0.5, help="share of the steps over which the guide loss fades")
P.add_argument("--answers", type=float, default=0.5, help="share of the distillation loss that the answers to planted facts get")
P.add_argument("--queries", type=int, default=64, help="computed queries that vote on the scores")
P.add_argument("--megabytes", type=int, default=12)
A = P.parse_args()
DEV = "cuda"
SCHEDULE = [float(x) for x in A.schedule.split(",")]


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, A.hidden), nn.Linear(A.hidden, 2)

    def forward(self, f):  # -> logits (compute, skip)
        return self.b(F.relu(self.a(f)))


def rank(score, causal):
    """Tokens with a higher score, or an equal one earlier, among all or among those before: [b, n] integers."""
    n = score.shape[1]
    above = (score[:, None, :] > score[:, :, None]) | ((score[:, None, :] == score[:, :, None])
                                                      & torch.ones(n, n, dtype=torch.bool, device=DEV).tril(-1))
    return (above & torch.ones(n, n, dtype=torch.bool, device=DEV).tril() if causal else above).sum(-1)


def factors(score, s, variant):
    n = score.shape[1]
    pos = torch.arange(n, device=DEV).float() / (n - 1)
    of = torch.arange(1, n + 1, device=DEV).float() if variant == "causal" else n
    pos = torch.zeros_like(pos) if variant == "nopos" else pos
    return torch.stack([pos.expand_as(score), torch.log1p(score), rank(score, variant == "causal").float() / of,
                        torch.full_like(score, s)], -1)


@torch.no_grad()
def received(q, k, computed, scale, causal):
    """Attention that every prompt key gets from the last computed queries. q [b, n, h, d], k [b, n, kv, d], rotated."""
    b, n, h, d = q.shape
    k = k.float().repeat_interleave(h // k.shape[2], 2)
    count = computed.sum(1)
    votes = n if causal else A.queries
    last = torch.where(computed, torch.arange(n, device=DEV), -1).sort(1, descending=True).values[:, :votes].flip(1)
    real = last >= 0
    at = last.clamp(min=0)
    logits = torch.einsum("bqhd,bkhd->bhqk", q.float().gather(1, at[:, :, None, None].expand(-1, -1, h, d)), k) * scale
    seen = (torch.arange(n, device=DEV) <= at[:, :, None]) & computed[:, None, :] & real[:, :, None]  # [b, q, k]
    p = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1).nan_to_num(0).mean(1)
    if causal:  # every token by its own query, times the keys that it sees
        own = (p * (torch.arange(n, device=DEV) == at[:, :, None])).sum(1)
        return own * computed.cumsum(1)
    return p.sum(1) / seen.sum(1).clamp(min=1) * count[:, None]


def static_mask(n, s):
    k = max(1, round((1 - s) * n))
    m = torch.zeros(n, device=DEV)
    m[0] = 1
    m[n - k + 1:] = 1
    return m


def pruned(model, ids, prompt, router, variant, noise=None, temper=1.0, dtype=torch.bfloat16):
    """-> hidden states, and per block (factors, logits, share skipped without noise, p(compute), block) of the prompt tokens.
    `noise`: what draws the decisions, from logistic noise of scale `temper`."""
    b, n = ids.shape
    x, angles = model.embed(ids, dtype), model.angles(n)
    score, log = torch.zeros(b, prompt, device=DEV), []
    causal = torch.ones(n, n, dtype=torch.bool, device=DEV).tril()
    for layer in range(model.layers):
        s = SCHEDULE[layer]
        m = torch.ones(b, prompt, device=DEV)
        if layer > 0 and s > 0:
            f = factors(score, s, variant)
            logits = router(f)
            z = logits[..., 0] - logits[..., 1]
            clean = z.sigmoid()
            clean_mask = torch.cat([torch.ones_like(z[:, :1]), ((z >= 0).float() + clean - clean.detach())[:, 1:]], 1)
            if noise is not None:
                u = torch.rand(z.shape, device=DEV, generator=noise).clamp(1e-6, 1 - 1e-6)
                z = z + temper * (torch.log(u) - torch.log1p(-u))
            p, hard = z.sigmoid(), (z >= 0).float()
            m = hard + p - p.detach()
            m = torch.cat([torch.ones_like(m[:, :1]), m[:, 1:]], 1)
            log.append((f, logits, 1 - clean_mask.mean(1), clean, layer))
        m = torch.cat([m, torch.ones(b, n - prompt, device=DEV)], 1)
        computed = m > 0.5
        h = model.norm(f"blk.{layer}.attn_norm", x)
        q, k, v = model.qkv(layer, h)
        q, k = model.rotate(q, angles), model.rotate(k, angles)
        mask = causal & computed[:, None, :] | torch.eye(n, dtype=torch.bool, device=DEV)
        y = x + model.out(layer, model.attend(q, k, v * m[:, :, None, None].to(v.dtype), mask[:, None]))
        y = y + model.ffn(layer, model.norm(f"blk.{layer}.ffn_norm", y))
        x = x + m[..., None].to(x.dtype) * (y - x)
        new = received(q[:, :prompt], k[:, :prompt], computed[:, :prompt], model.head ** -0.5, variant == "causal")
        score = torch.where(computed[:, :prompt], new, score)
    return x, log


def batch(tasks, rng, rows, split="train"):
    """-> (ids, kind: 0 padding, 1 text, 2 the answer to a question about a planted fact), [rows, length]. A prompt with
    questions ends with the first of them; those that follow run dense."""
    out = []
    for _ in range(rows):
        if rng.random() < 0.5:
            out.append((tasks.plain(rng, A.length, split), np.ones(A.length, np.int64)))
            continue
        ids, answer, _ = tasks.planted(rng, A.length, split, asked=int(rng.integers(1, 5)))
        cut = max(0, int(np.argmax(answer)) - (A.length - A.follow))
        pad = np.zeros(cut, np.int64)
        out.append((np.concatenate([ids[cut:], pad]), np.concatenate([1 + answer[cut:].astype(np.int64), pad])))
    return tuple(torch.from_numpy(np.stack(x)).to(DEV) for x in zip(*out))


def distil(model, ids, kind, x, prompt):
    """KL from the dense model on what follows the prompt: the mean over answers, and over all other tokens."""
    teacher = after(model, dense(model, ids), prompt).log_softmax(-1)
    kl = F.kl_div(after(model, x, prompt).log_softmax(-1), teacher, log_target=True, reduction="none").sum(-1)
    part = lambda k: (kl * (kind[:, prompt:] == k)).sum() / (kind[:, prompt:] == k).sum().clamp(min=1)  # noqa: E731
    return A.answers * part(2) + (1 - A.answers) * part(1)


@torch.no_grad()
def dense(model, ids):
    x, angles = model.embed(ids, torch.bfloat16), model.angles(ids.shape[1])
    for layer in range(model.layers):
        q, k, v = model.qkv(layer, model.norm(f"blk.{layer}.attn_norm", x))
        x = x + model.out(layer, model.attend(model.rotate(q, angles), model.rotate(k, angles), v))
        x = x + model.ffn(layer, model.norm(f"blk.{layer}.ffn_norm", x))
    return x


def after(model, x, prompt):
    return model.logits(x[:, prompt - 1:-1]).float()


def train(model, tasks, seed, variant):
    torch.manual_seed(seed)
    rng, noise = np.random.default_rng(seed + 70), torch.Generator(DEV).manual_seed(seed)
    router, prompt = Router().to(DEV), A.length - A.follow
    opt = torch.optim.AdamW(router.parameters(), lr=A.lr, weight_decay=0.0)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, A.steps)
    curve = []
    for step in range(A.steps):
        ids, kind = batch(tasks, rng, A.rows)
        x, log = pruned(model, ids, prompt, router, variant, noise, 1 - step / A.steps)
        kl = distil(model, ids, kind, x, prompt)
        off, guide, share = 0, 0, []
        for _, _, skip, p, layer in log:
            skipped = skip.mean()
            miss = SCHEDULE[layer] - skipped
            off = off + ((miss + A.margin).abs() if A.sparsity_loss == "symmetric" else miss.clamp(min=0))
            guide = guide + F.binary_cross_entropy(p.clamp(1e-5, 1 - 1e-5),
                                                   static_mask(prompt, SCHEDULE[layer]).expand_as(p)) / len(log)
            share.append(skipped.item())
        loss = kl + A.sparsity_weight * off + max(0.0, 1 - step / (A.guide * A.steps)) * guide
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(router.parameters(), 1.0)
        opt.step()
        sched.step()
        if step % 20 == 0 or step + 1 == A.steps:
            curve.append([step, round(kl.item(), 4), round(guide.item(), 4), [round(s, 3) for s in share]])
    return router, curve


@torch.no_grad()
def evaluate(model, tasks, router, variant):
    rng, prompt, kls, share = np.random.default_rng(7), A.length - A.follow, [], []
    for _ in range(6):
        ids, kind = batch(tasks, rng, 8, "held")
        x, log = pruned(model, ids, prompt, router, variant)
        kls.append(distil(model, ids, kind, x, prompt).item())
        share.append([skip.mean().item() for _, _, skip, _, _ in log])
    return float(np.mean(kls)), [round(float(s), 3) for s in np.mean(share, 0)]


@torch.no_grad()
def export(model, tasks, router, variant, seed, path):
    torch.backends.cuda.matmul.allow_tf32 = False
    if variant == "nopos":
        router.a.weight[:, 0] = 0  # whoever serves it gives the position all the same
    rng = np.random.default_rng(seed + 3000)
    ids, prompt = torch.from_numpy(tasks.plain(rng, A.length, "held"))[None].to(DEV), A.length - A.follow
    x, log = pruned(model, ids, prompt, router, variant, dtype=torch.float32)
    loss = F.cross_entropy(after(model, x, prompt)[0], ids[0, prompt:]).item()
    kept = np.array([round((1 - skip.item()) * prompt) for _, _, skip, _, _ in log], np.float32)
    some = [(f[0, 1::40], w[0, 1::40]) for f, w, _, _, _ in log]
    tensors = [(f"ftp.router{i}.{n}", getattr(m, n).cpu().numpy(), gguf.TYPE_F32)
               for i, m in enumerate((router.a, router.b)) for n in ("weight", "bias")]
    tensors += [("golden.ids", ids[0].float().cpu().numpy(), gguf.TYPE_F32),
                ("golden.nll", np.array([loss], np.float32), gguf.TYPE_F32), ("golden.kept", kept, gguf.TYPE_F32),
                ("golden.factors", torch.cat([f for f, _ in some]).cpu().numpy(), gguf.TYPE_F32),
                ("golden.logits", torch.cat([w for _, w in some]).cpu().numpy(), gguf.TYPE_F32),
                ("ftp.schedule", np.array(SCHEDULE, np.float32), gguf.TYPE_F32)]
    k = gguf.key
    gguf.write(path, [k("general.architecture", gguf.STRING, "sluice-router"), k("general.license", gguf.STRING, "apache-2.0"),
                      k("sluice.method", gguf.STRING, "ftp"), k("sluice.model", gguf.STRING, model.name),
                      k("sluice.seed", gguf.U32, seed), k("sluice.ftp.hidden", gguf.U32, A.hidden),
                      k("sluice.ftp.layers", gguf.U32, model.layers), k("sluice.ftp.follow", gguf.U32, A.follow),
                      k("sluice.ftp.causal", gguf.U32, int(variant == "causal"))], tensors)


def main():
    os.makedirs(A.out, exist_ok=True)
    model = FrozenLlama(A.model, DEV)
    tasks = Tasks(A.corpus, model.tokenizer(), A.megabytes, 1)
    percent = round(100 * sum(SCHEDULE) / len(SCHEDULE))
    for seed in A.seeds:
        report = {"seed": seed, "args": vars(A), "schedule": SCHEDULE, "runs": {}}
        for variant in A.variants:
            began = time.time()
            router, curve = train(model, tasks, seed, variant)
            kl, share = evaluate(model, tasks, router, variant)
            report["runs"][variant] = {"kl": kl, "sparsity": share, "curve": curve}
            print(seed, variant, "kl", round(kl, 4), "sparsity", share, f"{time.time() - began:.0f} s", curve[0], flush=True)
            export(model, tasks, router, variant, seed, os.path.join(A.out, f"ftp-{variant}{percent}-s{seed}.gguf"))
        with open(os.path.join(A.out, f"ftp-{'-'.join(A.variants)}-s{seed}.json"), "w") as f:
            json.dump(report, f, indent=1)


if __name__ == "__main__":
    main()
