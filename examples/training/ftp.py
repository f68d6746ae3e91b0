#!/usr/bin/env python3
"""Trains the router of FTP, fine-grained token-wise pruner (arXiv 2412.11494), on a frozen language model: one router for
all blocks, four factors in, under a schedule of block sparsities.

Three steps, as published: a genetic search of the schedule with the static router (first and most recent tokens), the
router, the search again with the learned router; --rounds repeats the last two. The router starts as the static rule, may
be taught which prompts bear more skipping (--teach), then learns by distillation: the prompt is pruned, the tokens after
it run dense over the ragged caches, and what counts is what the pruned prompt says about them. The router that is kept
is the one with the lowest loss on validation text. One GPU, a few minutes a run. Example:
  ftp.py --model sluice-mini-q8_0.gguf --corpus corpus.txt.xz --out out --seeds 1 2 3
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
from gates import straight_through  # noqa: E402
from tasks import Tasks  # noqa: E402

P = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
P.add_argument("--model", required=True)
P.add_argument("--corpus", required=True)
P.add_argument("--out", required=True)
P.add_argument("--sparsity", type=float, default=0.3, help="mean over the blocks")
P.add_argument("--schedule", help="sparsity of every block, separated by commas; default: the search with the static router")
P.add_argument("--seeds", type=int, nargs="+", default=[1])
P.add_argument("--variants", nargs="+", default=["full", "nopos", "causal"], choices=["full", "nopos", "causal"],
               help="nopos: without the position factor, an ablation; causal: scores by each token's own query")
P.add_argument("--tag", default="", help="added to the names of the files")
P.add_argument("--hidden", type=int, default=64)
P.add_argument("--init", choices=["static", "random"], default="static", help="static: starts as the static router")
P.add_argument("--steepness", type=float, default=10.0, help="of the static start: the margin is this times (position - sparsity)")
P.add_argument("--teach", type=int, default=0,
               help="steps, three times (2500 are enough), that teach whose tokens to skip: the static rule, at more than the sparsity for prompts that bear it "
                    "and at less for the others")
P.add_argument("--spread", type=float, default=0.9, help="how much more and less, as a share of the sparsity")
P.add_argument("--gate", choices=["topk", "threshold"], default="threshold",
               help="topk: every prompt meets the budget; threshold, as published: the mean over prompts does")
P.add_argument("--mask", choices=["softmax", "value"], default="softmax",
               help="what a gate does to a key: softmax: weights its probability, so that the gradient of a skipped token "
                    "says who would attend to it; value: scales its value")
P.add_argument("--rounds", type=int, default=0, help="of searching the schedule with the learned router and training again; 0: none")
P.add_argument("--steps", type=int, default=100, help="of distillation")
P.add_argument("--rows", type=int, default=16)
P.add_argument("--length", type=int, default=1152)
P.add_argument("--follow", type=int, default=128, help="tokens after the prompt")
P.add_argument("--lr", type=float, default=1e-3)
P.add_argument("--teach-lr", type=float, default=1e-2)
P.add_argument("--collect", type=int, default=24, help="batches that every turn of teaching observes")
P.add_argument("--rate", choices=["cosine", "constant"], default="cosine")
P.add_argument("--noise", type=float, default=0.5, help="share of the steps over which the gates' noise fades")
P.add_argument("--sparsity-weight", type=float, default=4.0, help="of the threshold gate; published: 1")
P.add_argument("--sparsity-loss", choices=["symmetric", "one_sided"], default="symmetric", help="published: one_sided")
P.add_argument("--margin", type=float, default=0.01, help="what the symmetric loss aims at beyond the schedule")
P.add_argument("--guide", type=float, default=0.0, help="share of the steps over which the guide loss fades; published: yes")
P.add_argument("--warm", type=float, default=0.0, help="share of the steps with the guide loss alone")
P.add_argument("--answers", type=float, default=0.5, help="share of the distillation loss that the answers to planted facts get")
P.add_argument("--queries", type=int, default=64, help="computed queries that vote on the scores")
P.add_argument("--population", type=int, default=24, help="of the genetic search")
P.add_argument("--generations", type=int, default=20)
P.add_argument("--validate", type=int, default=6, help="batches of validation text")
P.add_argument("--every", type=int, default=50, help="steps between validations")
P.add_argument("--megabytes", type=int, default=12)
P.add_argument("--device", default="cuda")
COMPUTE, SKIP = 0, 1


class Router(nn.Module):
    def __init__(self, hidden, init, steepness):
        super().__init__()
        self.a, self.b = nn.Linear(4, hidden), nn.Linear(hidden, 2)
        if init == "static":  # one hidden unit holds the position, one the sparsity; the rest says nothing yet
            with torch.no_grad():
                self.a.weight[:2] = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]])
                self.a.bias[:2] = 0
                self.b.weight.zero_()
                self.b.bias.zero_()
                self.b.weight[COMPUTE, :2] = torch.tensor([0.5, -0.5]) * steepness
                self.b.weight[SKIP, :2] = torch.tensor([-0.5, 0.5]) * steepness

    def forward(self, f):  # -> logits (compute, skip)
        return self.b(F.relu(self.a(f)))


def static_router(f):
    """The static rule as a router: the most recent tokens, but for the first."""
    margin = f[..., 0] - f[..., 3]
    return torch.stack([margin, -margin], -1)


def rank(score, causal):
    """Tokens with a higher score, or an equal one earlier, among all or among those before: [b, n] integers."""
    if not causal:
        return score.sort(dim=1, descending=True, stable=True).indices.argsort(1)
    n = score.shape[1]
    before = torch.ones(n, n, dtype=torch.bool, device=score.device).tril(-1)
    above = (score[:, None, :] > score[:, :, None]) | (score[:, None, :] == score[:, :, None])
    return (above & before).sum(-1)


def factors(score, s, variant):
    n = score.shape[1]
    pos = torch.arange(n, device=score.device).to(score.dtype) / (n - 1)
    of = torch.arange(1, n + 1, device=score.device).to(score.dtype) if variant == "causal" else n
    pos = torch.zeros_like(pos) if variant == "nopos" else pos
    return torch.stack([pos.expand_as(score), torch.log1p(score), rank(score, variant == "causal").to(score.dtype) / of,
                        torch.full_like(score, s)], -1)


@torch.no_grad()
def received(q, k, computed, scale, causal, queries):
    """Attention that every prompt key gets from the last computed queries. q [b, n, h, d], k [b, n, kv, d], rotated."""
    b, n, h, d = q.shape
    place = torch.arange(n, device=q.device)
    k = k.float().repeat_interleave(h // k.shape[2], 2)
    count = computed.sum(1)
    last = torch.where(computed, place, -1).sort(1, descending=True).values[:, :n if causal else queries].flip(1)
    real = last >= 0
    at = last.clamp(min=0)
    logits = torch.einsum("bqhd,bkhd->bhqk", q.float().gather(1, at[:, :, None, None].expand(-1, -1, h, d)), k) * scale
    seen = (place <= at[:, :, None]) & computed[:, None, :] & real[:, :, None]  # [b, q, k]
    p = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1).nan_to_num(0).mean(1)
    if causal:  # every token by its own query, times the keys that it sees
        own = (p * (place == at[:, :, None])).sum(1)
        return own * computed.cumsum(1)
    return p.sum(1) / seen.sum(1).clamp(min=1) * count[:, None]


def kept(n, s):
    return max(1, round((1 - s) * n))


def static_mask(n, s, device):
    m = torch.zeros(n, device=device)
    m[0] = 1
    m[n - kept(n, s) + 1:] = 1
    return m


def decide(z, s, kind, noise, temper):
    """Margins [b, n] -> (gates, what learns of them, the margin at which the budget is met)."""
    if noise is not None and temper > 0:
        u = torch.rand(z.shape, device=z.device, dtype=z.dtype, generator=noise).clamp(1e-6, 1 - 1e-6)
        z = z + temper * (torch.log(u) - torch.log1p(-u))
    least = torch.zeros_like(z[:, :1])
    if kind == "topk":  # the first token is one of those kept
        k = kept(z.shape[1], s) - 1
        least = z[:, 1:].topk(max(1, k), 1).values[:, -1:]
        if k == 0:
            least = least.abs() + z.abs().amax(1, keepdim=True) + 1
    p = (z - least).sigmoid()
    m = straight_through((z >= least).to(z.dtype), p)
    return torch.cat([torch.ones_like(m[:, :1]), m[:, 1:]], 1), p, least


def attend(model, q, k, v, m, mask, how):
    """Attention with gates m [b, n] on keys. Every token sees its own key, computed or not."""
    n = q.shape[1]
    own = torch.eye(n, dtype=torch.bool, device=q.device)
    if how == "value" or not torch.is_grad_enabled():
        if torch.is_grad_enabled():
            v = v * m[:, :, None, None].to(v.dtype)
        return model.attend(q, k, v, (mask & (m > 0.5)[:, None, :] | own)[:, None])
    g = model.heads // model.kv_heads
    q, k, v = q.transpose(1, 2), k.transpose(1, 2).repeat_interleave(g, 1), v.transpose(1, 2).repeat_interleave(g, 1)
    logits = (q @ k.transpose(-1, -2)).to(m.dtype) * model.head ** -0.5
    logits = logits.masked_fill(~mask, -torch.inf)
    weight = (logits - logits.detach().amax(-1, keepdim=True)).exp() * torch.where(own, torch.ones_like(m[:, :1, None]), m[:, None, :])[:, None]
    return ((weight / weight.sum(-1, keepdim=True)).to(v.dtype) @ v).transpose(1, 2).flatten(-2)


def pruned(model, ids, prompt, router, schedule, variant="full", gate="topk", how="value", noise=None, temper=1.0, queries=64,
           dtype=torch.bfloat16):
    """-> hidden states, and per pruned block (factors, logits, gates, p(compute), least margin, block) of the prompt tokens.
    `noise`: what draws the decisions, from logistic noise of scale `temper`."""
    b, n = ids.shape
    dev, inner = ids.device, torch.promote_types(dtype, torch.float32)
    x, angles = model.embed(ids, dtype), model.angles(n)
    score, log = torch.zeros(b, prompt, device=dev, dtype=inner), []
    mask = torch.ones(n, n, dtype=torch.bool, device=dev).tril()
    for layer in range(model.layers):
        s = schedule[layer]
        m = torch.ones(b, n, device=dev, dtype=inner)
        if layer > 0 and s > 0:
            f = factors(score, s, variant)
            logits = router(f)
            some, p, least = decide(logits[..., COMPUTE] - logits[..., SKIP], s, gate, noise, temper)
            log.append((f, logits, some, p, least, layer))
            m = torch.cat([some, m[:, prompt:]], 1)
        h = model.norm(f"blk.{layer}.attn_norm", x)
        q, k, v = model.qkv(layer, h)
        q, k = model.rotate(q, angles), model.rotate(k, angles)
        y = x + model.out(layer, attend(model, q, k, v, m, mask, how))
        y = y + model.ffn(layer, model.norm(f"blk.{layer}.ffn_norm", y))
        x = x + m[..., None].to(x.dtype) * (y - x)
        computed = m[:, :prompt] > 0.5
        new = received(q[:, :prompt], k[:, :prompt], computed, model.head ** -0.5, variant == "causal", queries)
        score = torch.where(computed, new.to(inner), score)
    return x, log


def batch(tasks, rng, a, split="train"):
    """-> (ids, kind: 0 padding, 1 text, 2 the answer to a question about a planted fact), [rows, length]. A prompt with
    questions ends with the first of them; those that follow run dense."""
    out = []
    for row in range(a.rows):
        if rng.random() < 0.5 if split == "train" else row % 2:
            out.append((tasks.plain(rng, a.length, split), np.ones(a.length, np.int64)))
            continue
        asked, seed = int(rng.integers(1, 5)), int(rng.integers(1 << 30))
        draw = lambda n: tasks.planted(np.random.default_rng(seed), n, split, asked=asked)  # noqa: E731
        pad = int(np.argmax(draw(a.length)[1])) - (a.length - a.follow)
        ids, answer, _ = draw(a.length - pad)  # less text, the same facts
        pad = np.zeros(pad, np.int64)
        out.append((np.concatenate([ids, pad]), np.concatenate([1 + answer.astype(np.int64), pad])))
    return tuple(torch.from_numpy(np.stack(x)).to(a.device) for x in zip(*out))


@torch.no_grad()
def dense(model, ids, dtype=torch.bfloat16):
    x, angles = model.embed(ids, dtype), model.angles(ids.shape[1])
    for layer in range(model.layers):
        q, k, v = model.qkv(layer, model.norm(f"blk.{layer}.attn_norm", x))
        x = x + model.out(layer, model.attend(model.rotate(q, angles), model.rotate(k, angles), v))
        x = x + model.ffn(layer, model.norm(f"blk.{layer}.ffn_norm", x))
    return x


def after(model, x, prompt):
    logits = model.logits(x[:, prompt - 1:-1])
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def distil(model, teacher, kind, x, prompt, answers):
    """KL from the dense model on what follows the prompt: the mean over answers, and over all other tokens."""
    kl = F.kl_div(after(model, x, prompt).log_softmax(-1), teacher, log_target=True, reduction="none").sum(-1)
    part = lambda k: (kl * (kind[:, prompt:] == k)).sum() / (kind[:, prompt:] == k).sum().clamp(min=1)  # noqa: E731
    return answers * part(2) + (1 - answers) * part(1)


def loss_of_each(model, teacher, kind, x, prompt):
    """KL from the dense model, the mean over what is scored of each prompt: its answers, or all that follows."""
    kl = F.kl_div(after(model, x, prompt).log_softmax(-1), teacher, log_target=True, reduction="none").sum(-1)
    scored = kind[:, prompt:] == kind[:, prompt:].amax(1, keepdim=True)
    return (kl * scored).sum(1) / scored.sum(1)


def told(model, ids, prompt, dtype=torch.bfloat16):
    return after(model, dense(model, ids, dtype), prompt).log_softmax(-1)


class Validation:
    """The same batches for every router and every schedule, of one of two disjoint sets."""

    def __init__(self, model, tasks, a, which):
        rng, self.model, self.a, self.prompt = np.random.default_rng(7 + which), model, a, a.length - a.follow
        self.batches = []
        for _ in range(a.validate):
            ids, kind = batch(tasks, rng, a, "held")
            self.batches.append((ids, kind, told(model, ids, self.prompt)))

    @torch.no_grad()
    def __call__(self, router, schedule, variant="full", gate="topk"):
        """-> KL, the accuracy kept of the dense model's in percent (mean over answers and text), sparsity of every block."""
        kl, right, dense_right, share, by_kind = [], [], [], [], ([], [])
        for ids, kind, teacher in self.batches:
            x, log = pruned(self.model, ids, self.prompt, router, schedule, variant, gate, queries=self.a.queries)
            kl.append(distil(self.model, teacher, kind, x, self.prompt, self.a.answers).item())
            said, want, kind = after(self.model, x, self.prompt).argmax(-1), ids[:, self.prompt:], kind[:, self.prompt:]
            hits = lambda y: torch.stack([((y == want) & (kind == k)).sum() for k in (1, 2)])  # noqa: E731
            count = torch.stack([(kind == k).sum() for k in (1, 2)])
            right.append(torch.stack([hits(said), count]))
            dense_right.append(torch.stack([hits(teacher.argmax(-1)), count]))
            share.append([1 - m.mean().item() for _, _, m, _, _, _ in log])
            asks = kind.amax(1) == 2
            for i, group in enumerate((~asks, asks)):
                by_kind[i].append(np.mean([1 - m[group].mean().item() for _, _, m, _, _, _ in log] or [0.0]))
        accuracy = lambda r: [(h / c).item() for h, c in zip(*torch.stack(r).sum(0).double())]  # noqa: E731
        mine, full = accuracy(right), accuracy(dense_right)
        return {"kl": float(np.mean(kl)), "retention": 100 * sum(mine) / sum(full), "text": mine[0], "answers": mine[1],
                "dense": full, "of_kinds": [round(float(np.mean(s)), 3) for s in by_kind], "sparsity": [round(float(s), 4) for s in np.mean(share, 0)]}


def water_fill(genes, mean, most=0.9):
    """Shifts the genes after the first, within [0, most], until the mean over all is `mean`."""
    low, high = -2.0, 2.0
    for _ in range(60):
        shift = (low + high) / 2
        filled = np.concatenate([[0.0], np.clip(genes[1:] + shift, 0, most)])
        low, high = (shift, high) if filled.mean() < mean else (low, shift)
    return filled


def mean_sparsity(r, layers):
    return sum(r["sparsity"]) / layers


def search(valid, router, variant, a, gate="topk", start=None):
    """The genetic search of policies/search/genetic.h, with the KL on validation text as the (negative) fitness; what a
    threshold misses of the sparsity counts against it."""
    rng, layers = np.random.default_rng(31), valid.model.layers

    def rate(g):
        r = valid(router, list(g), variant, gate)
        return r["kl"] + (20 * abs(a.sparsity - mean_sparsity(r, layers)) if gate == "threshold" else 0), g
    first = [np.full(layers, a.sparsity)] + ([np.array(start)] if start is not None else [])
    first += [0.9 * rng.random(layers) for _ in range(a.population - len(first))]
    now = sorted((rate(water_fill(g, a.sparsity)) for g in first), key=lambda x: x[0])
    for _ in range(a.generations - 1):
        children = now[:2]
        while len(children) < a.population:
            one, two = (now[min(rng.integers(a.population, size=3))][1] for _ in range(2))
            child = np.where(rng.random(layers) < 0.5, one, two)
            give, take = rng.integers(1, layers, size=2)
            amount = 0.1 * rng.random()
            child[give] -= amount
            child[take] += amount
            children.append(rate(water_fill(child, a.sparsity)))
        now = sorted(children, key=lambda x: x[0])
    return [round(float(g), 4) for g in now[0][1]]


def losses(log, kl, schedule, step, a):
    """-> (what trains, the guide loss, the skipped share of every block). KL, sparsity and the guide of the published sum;
    under the topk gate, where every budget is met, the margins at the cut are drawn to 0, so that the threshold serves too."""
    off, guide, share = 0, 0, []
    for _, _, m, p, least, layer in log:
        skipped = 1 - m.mean()
        share.append(skipped.item())
        miss = schedule[layer] - skipped
        off = off + ((miss + a.margin).abs() if a.sparsity_loss == "symmetric" else miss.clamp(min=0))
        want = static_mask(p.shape[1], schedule[layer], p.device).to(p.dtype).expand_as(p)
        guide = guide + F.binary_cross_entropy(p.clamp(1e-5, 1 - 1e-5), want) / len(log)
    if a.gate == "topk":
        off = sum((least ** 2).mean() for _, _, _, _, least, _ in log) * 0.01 / a.sparsity_weight
    warm = step < a.warm * a.steps
    weight = 1.0 if warm else max(0.0, 1 - (step - a.warm * a.steps) / (a.guide * a.steps)) if a.guide > 0 else 0.0
    return (0 if warm else kl) + a.sparsity_weight * off + weight * guide, guide, share


@torch.no_grad()
def calibrate(valid, router, schedule, variant, a):
    """Moves the logit of computing so that thresholds meet the sparsity on validation text -> what is then measured."""
    start, low, high = router.b.bias[COMPUTE].item(), -6.0, 6.0
    for _ in range(9):
        router.b.bias[COMPUTE] = start + (low + high) / 2
        r = valid(router, schedule, variant, "threshold")
        low, high = ((low + high) / 2, high) if mean_sparsity(r, valid.model.layers) > a.sparsity + a.margin else (low, (low + high) / 2)
    return r


@torch.no_grad()
def observe(model, tasks, rng, schedule, variant, router, a):
    """Factors of pruned prompts and whether the token should compute: by the static rule, at more than the sparsity for the
    half of a batch that this would cost least, and at less for the others. `router` decides, or (None) what should.
    -> [rows, 4], [rows]"""
    prompt, factor, want = a.length - a.follow, [], []
    for _ in range(a.collect):
        ids, kind = batch(tasks, rng, a)
        deep = [min(0.95, (1 + a.spread) * s) for s in schedule]
        x, _ = pruned(model, ids, prompt, static_router, deep, queries=a.queries)
        cost = loss_of_each(model, told(model, ids, prompt), kind, x, prompt)
        share = torch.where(cost > cost.median(), 1 - a.spread, 1 + a.spread)[:, None]

        def told_router(f):
            z = 20 * (factors_place(f) - (share * f[..., 3]).clamp(max=0.97))
            return torch.stack([z, -z], -1)
        _, log = pruned(model, ids, prompt, router or told_router, schedule, variant, "threshold", queries=a.queries)
        for f, *_ in log:
            factor.append(f[:, ::2].flatten(0, 1))
            want.append((margin(told_router(f)) >= 0).to(f.dtype)[:, ::2].flatten())
    return torch.cat(factor), torch.cat(want)


def teach(model, tasks, seed, variant, schedule, router, a):
    """Which prompts bear skipping, from the prompt alone: regression on the factors that the right decisions give, then also
    on those that its own decisions give. -> curve"""
    rng, gen, curve, seen = np.random.default_rng(seed + 70), torch.Generator(a.device).manual_seed(seed), [], []
    for turn in range(3):
        seen.append(observe(model, tasks, rng, schedule, variant, router if turn else None, a))
        f, want = (torch.cat(x) for x in zip(*seen))
        opt = torch.optim.AdamW(router.parameters(), lr=a.teach_lr, weight_decay=0.0)
        for step in range(a.teach):
            opt.param_groups[0]["lr"] = a.teach_lr * (1 - step / a.teach)
            i = torch.randint(len(f), (16384,), device=a.device, generator=gen)
            loss = F.binary_cross_entropy_with_logits(margin(router(f[i])), want[i])
            opt.zero_grad()
            loss.backward()
            opt.step()
        curve.append([turn, round(loss.item(), 4)])
    return curve


def margin(logits):
    return logits[..., COMPUTE] - logits[..., SKIP]


def factors_place(f):
    n = f.shape[1]
    return (torch.arange(n, device=f.device).to(f.dtype) / (n - 1)).expand(f.shape[:2])


def train(model, tasks, valid, seed, variant, schedule, router, a):
    """Distillation -> curve; the router becomes the one that validates best at the wanted sparsity."""
    rng, noise = np.random.default_rng(seed + 71), torch.Generator(a.device).manual_seed(seed)
    prompt, curve = a.length - a.follow, []
    opt = torch.optim.AdamW(router.parameters(), lr=a.lr, weight_decay=0.0)
    sched = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda i: 1.0 if a.rate == "constant" else 0.5 * (1 + np.cos(np.pi * i / a.steps)))
    check = lambda: calibrate(valid, router, schedule, variant, a) if a.gate == "threshold" else valid(router, schedule, variant)  # noqa: E731
    best, weights = check()["kl"], snapshot(router)
    for step in range(a.steps):
        ids, kind = batch(tasks, rng, a)
        temper = max(0.0, 1 - step / (a.noise * a.steps)) if a.noise > 0 else 0.0
        x, log = pruned(model, ids, prompt, router, schedule, variant, a.gate, a.mask, noise, temper, a.queries)
        kl = distil(model, told(model, ids, prompt), kind, x, prompt, a.answers)
        loss, guide, share = losses(log, kl, schedule, step, a)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(router.parameters(), 1.0)
        opt.step()
        sched.step()
        if (step + 1) % a.every == 0:
            now = check()
            curve.append([step + 1, round(kl.item(), 4), round(guide.item(), 4), round(now["kl"], 4),
                          round(now["retention"], 2), [round(s, 3) for s in share]])
            if now["kl"] < best:
                best, weights = now["kl"], snapshot(router)
    router.load_state_dict(weights)
    return curve


def snapshot(router):
    return {k: v.detach().clone() for k, v in router.state_dict().items()}


@torch.no_grad()
def export(model, tasks, router, schedule, static, variant, seed, path, a):
    torch.backends.cuda.matmul.allow_tf32 = False
    if variant == "nopos":
        router.a.weight[:, 0] = 0  # whoever serves it gives the position all the same
    rng = np.random.default_rng(seed + 3000)
    ids, prompt = torch.from_numpy(tasks.plain(rng, a.length, "held"))[None].to(a.device), a.length - a.follow
    x, log = pruned(model, ids, prompt, router, schedule, variant, "threshold", queries=a.queries, dtype=torch.float32)
    loss = F.cross_entropy(after(model, x, prompt)[0], ids[0, prompt:]).item()
    many = np.array([round(m.mean().item() * prompt) for _, _, m, _, _, _ in log], np.float32)
    some = [(f[0, 1::40], w[0, 1::40]) for f, w, _, _, _, _ in log]
    tensors = [(f"ftp.router{i}.{n}", getattr(m, n).cpu().numpy(), gguf.TYPE_F32)
               for i, m in enumerate((router.a, router.b)) for n in ("weight", "bias")]
    tensors += [("golden.ids", ids[0].float().cpu().numpy(), gguf.TYPE_F32),
                ("golden.nll", np.array([loss], np.float32), gguf.TYPE_F32), ("golden.kept", many, gguf.TYPE_F32),
                ("golden.factors", torch.cat([f for f, _ in some]).cpu().numpy(), gguf.TYPE_F32),
                ("golden.logits", torch.cat([w for _, w in some]).cpu().numpy(), gguf.TYPE_F32),
                ("ftp.schedule", np.array(schedule, np.float32), gguf.TYPE_F32),
                ("ftp.static_schedule", np.array(static, np.float32), gguf.TYPE_F32)]
    k = gguf.key
    gguf.write(path, [k("general.architecture", gguf.STRING, "sluice-router"), k("general.license", gguf.STRING, "apache-2.0"),
                      k("sluice.method", gguf.STRING, "ftp"), k("sluice.model", gguf.STRING, model.name),
                      k("sluice.seed", gguf.U32, seed), k("sluice.ftp.hidden", gguf.U32, a.hidden),
                      k("sluice.ftp.layers", gguf.U32, model.layers), k("sluice.ftp.follow", gguf.U32, a.follow),
                      k("sluice.ftp.causal", gguf.U32, int(variant == "causal"))], tensors)


def run(model, tasks, sets, seed, variant, schedule, a):
    """All steps for one seed and variant -> (router, schedule, report)."""
    valid, other = sets
    torch.manual_seed(seed)
    router, rounds = Router(a.hidden, a.init, a.steepness).to(a.device), []
    for turn in range(1 + a.rounds):
        r = {"schedule": schedule, "before": other(router, schedule, variant, a.gate)}
        if a.teach > 0:
            r["teach"] = teach(model, tasks, seed + 1000 * turn, variant, schedule, router, a)
            calibrate(valid, router, schedule, variant, a)
            r["taught"] = other(router, schedule, variant, a.gate)
        if turn < a.rounds:
            schedule = search(valid, router, variant, a, a.gate, schedule)
        else:
            r["curve"] = train(model, tasks, valid, seed, variant, schedule, router, a)
            r["learned"] = other(router, schedule, variant, a.gate)
            r["exact"] = other(router, schedule, variant)
        rounds.append(r)
        print(seed, variant, "round", turn, {k: (v["kl"], v["retention"], v["of_kinds"], v["sparsity"]) for k, v in r.items() if isinstance(v, dict)},
              schedule, flush=True)
    return router, schedule, {"rounds": rounds}


def main():
    a = P.parse_args()
    os.makedirs(a.out, exist_ok=True)
    model = FrozenLlama(a.model, a.device)
    tasks = Tasks(a.corpus, model.tokenizer(), a.megabytes, 1)
    # One set selects and searches, the other is reported.
    sets = [Validation(model, tasks, a, which) for which in (0, 1)]
    first = [float(x) for x in a.schedule.split(",")] if a.schedule else search(sets[0], static_router, "full", a)
    uniform = list(water_fill(np.full(model.layers, a.sparsity), a.sparsity))
    static = {"schedule": first, "searched": sets[1](static_router, first), "uniform": sets[1](static_router, uniform)}
    print("static", static, flush=True)
    for seed in a.seeds:
        report = {"seed": seed, "args": vars(a), "static": static, "runs": {}}
        for variant in a.variants:
            began = time.time()
            router, schedule, report["runs"][variant] = run(model, tasks, sets, seed, variant, first, a)
            print(seed, variant, f"{time.time() - began:.0f} s", flush=True)
            name = f"ftp-{variant}{round(100 * a.sparsity)}{a.tag}-s{seed}"
            export(model, tasks, router, schedule, first, variant, seed, os.path.join(a.out, name + ".gguf"), a)
        with open(os.path.join(a.out, f"ftp-{'-'.join(a.variants)}{a.tag}-s{seed}.json"), "w") as f:
            json.dump(report, f, indent=1)


if __name__ == "__main__":
    main()
