#!/usr/bin/env python3
"""Trains Informed Routing (arXiv 2510.13831) on a frozen language model: a forecaster (LFF) and an execute-or-approximate
router for every attention and FFN unit, and beside them the execute-or-skip baseline in the style of SkipGPT, whose
router alone has as many parameters as LFF and router together.

Stage 1 fits the forecasters to the units' outputs; stage 2 trains the routers under one global budget. One GPU, about
a minute a seed. Example:
  informed_routing.py --model sluice-mini-q8_0.gguf --corpus corpus.txt.xz --out out --seeds 1 2 3
"""
import argparse
import copy
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
from frozen_llama import FrozenLlama, full  # noqa: E402
from gates import gumbel  # noqa: E402
from tasks import Tasks  # noqa: E402

P = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
P.add_argument("--model", required=True)
P.add_argument("--corpus", required=True)
P.add_argument("--out", required=True)
P.add_argument("--seeds", type=int, nargs="+", default=[1])
P.add_argument("--sparsity", type=float, nargs="+", default=[0.25, 0.40])
P.add_argument("--rank", type=int, default=64, help="width of a forecaster")
P.add_argument("--hidden", type=int, default=32, help="width of a router; the skip baseline gets the parameters of both")
P.add_argument("--act", choices=["silu", "none"], default="silu")
P.add_argument("--fit-steps", type=int, default=1000)
P.add_argument("--fit-tokens", type=int, default=16384, help="a step")
P.add_argument("--steps", type=int, default=2000)
P.add_argument("--rows", type=int, default=4)
P.add_argument("--length", type=int, default=2048, help="of training windows: what attention adds depends on how far it looks back")
P.add_argument("--budget-weight", type=float, default=8.0)
P.add_argument("--budget", choices=["row", "batch"], default="batch",
               help="row: every text meets the budget, so that it holds for texts of other kinds; batch: their mean does, as published")
P.add_argument("--settle", type=int, default=0,
               help="steps that the forecasters learn on under the decisions that are served; published: none")
P.add_argument("--seconds", type=float, default=0, help="a budget's training is cut to so long, its schedules with it; 0: no limit")
P.add_argument("--lr", type=float, default=2e-3)
P.add_argument("--schedule", choices=["cosine", "constant"], default="cosine", help="published: constant")
P.add_argument("--serve", choices=["calibrated", "raw"], default="calibrated",
               help="calibrated: one offset on all logits makes the served argmax meet the budget that the sampled gates "
                    "met in training; raw: as published")
P.add_argument("--fit-lr", type=float, default=3e-3, help="published: 1e-3")
P.add_argument("--fit-loss", choices=["mse", "smooth_l1"], default="mse", help="published: smooth_l1, which hardly sees small units")
P.add_argument("--down-init", type=float, default=0.0, help="spread of a forecaster's first matrix; 0: width^-1/2; published: 1e-3")
P.add_argument("--forecasters", choices=["joint", "frozen"], default="joint",
               help="joint: they learn on with the routers, from the language model's loss; frozen: as published")
P.add_argument("--joint-lr", type=float, default=1e-3)
P.add_argument("--loss", choices=["distil", "text"], default="distil",
               help="of the routers: KL from the dense model; text: cross-entropy, as published")
P.add_argument("--gates", nargs="+", choices=["lff", "skip"], default=["lff", "skip"])
P.add_argument("--tag", default="", help="added to the names of the files")
P.add_argument("--device", default="cuda")
P.add_argument("--megabytes", type=int, default=12)
P.add_argument("--without", nargs="*", default=[], help="token files (.u16); documents that share text with them are left out")
P.add_argument("--eval-rows", type=int, default=12)
A = P.parse_args()
DEV = A.device
EXECUTE, APPROXIMATE = 0, 1


class Forecaster(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.down, self.up = nn.Linear(d, A.rank), nn.Linear(A.rank, d)
        for m in (self.down, self.up):
            nn.init.normal_(m.weight, std=1e-3 if m is self.up else A.down_init or d ** -0.5)
            nn.init.zeros_(m.bias)

    def forward(self, h):
        x = self.down(h)
        return self.up(F.silu(x) if A.act == "silu" else x)


class Router(nn.Module):
    def __init__(self, d, hidden):
        super().__init__()
        self.a, self.b = nn.Linear(d, hidden), nn.Linear(hidden, 2)
        for m in (self.a, self.b):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            nn.init.zeros_(m.bias)

    def forward(self, h):
        return self.b(F.relu(self.a(h)))


def unit_out(model, layer, unit, h, angles):
    if unit == 1:
        return model.ffn(layer, h)
    q, k, v = model.qkv(layer, h)
    return model.out(layer, model.attend(model.rotate(q, angles), model.rotate(k, angles), v))


def forward(model, ids, rule, dtype=torch.bfloat16):
    """rule(layer, unit, h, U) -> what the residual gains. K and V are computed for every token."""
    x, angles = model.embed(ids, dtype), model.angles(ids.shape[1])
    for layer in range(model.layers):
        for unit, name in enumerate(("attn_norm", "ffn_norm")):
            h = model.norm(f"blk.{layer}.{name}", x)
            x = x + rule(layer, unit, h, unit_out(model, layer, unit, h, angles))
    return x


def nll(model, x, ids):
    return F.cross_entropy(full(model.logits(x[:, :-1]).flatten(0, 1)), ids[:, 1:].flatten())


def batch(tasks, rng, rows, n, split="train"):
    out = [tasks.plain(rng, n, split) if rng.random() < 0.65 else tasks.planted(rng, n, split)[0] for _ in range(rows)]
    return torch.from_numpy(np.stack(out)).to(DEV)


def fit(model, tasks, seed):
    """Stage 1: local regression on dense activations."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    lff = nn.ModuleList(nn.ModuleList(Forecaster(model.width) for _ in range(2)) for _ in range(model.layers)).to(DEV)
    opt = torch.optim.AdamW(lff.parameters(), lr=A.fit_lr, weight_decay=0.01)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, A.fit_steps)
    curve = []
    for step in range(A.fit_steps):
        total = []

        def rule(layer, unit, h, u):
            loss = F.mse_loss if A.fit_loss == "mse" else F.smooth_l1_loss
            want = u.detach().float()
            off = loss(lff[layer][unit](h.detach().float()), want)
            # Every unit counts alike, however large its outputs.
            total.append(off / want.var() if A.fit_loss == "mse" else off)
            return u
        with torch.no_grad():
            kept = []
            forward(model, batch(tasks, rng, A.fit_tokens // A.length, A.length), lambda a, b, h, u: (kept.append((a, b, h, u)), u)[1])
        for a, b, h, u in kept:
            rule(a, b, h, u)
        loss = sum(total)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        if step % 50 == 0 or step + 1 == A.fit_steps:
            curve.append([step, round(loss.item(), 5)])
    for p in lff.parameters():
        p.requires_grad_(False)
    return lff, curve


def gates(logits, tau, generator):
    """Straight-through Gumbel argmax -> z [.., 2]."""
    return gumbel(logits, tau, generator)[0]


def pin(z):
    """Token 0 always executes: it is the attention sink."""
    first = torch.zeros_like(z[:, :1])
    first[..., EXECUTE] = 1
    return torch.cat([first, z[:, 1:]], 1)


def mix(z, u, f):
    y = z[..., EXECUTE:EXECUTE + 1].to(u.dtype) * u
    return y if f is None else y + z[..., APPROXIMATE:].to(u.dtype) * f.to(u.dtype)


def task_loss(model, x, ids):
    """Of routed hidden states: what text the model expects, or how far it is from what the dense model expects."""
    if A.loss == "text":
        return nll(model, x, ids)
    with torch.no_grad():
        teacher = full(model.logits(forward(model, ids, lambda layer, unit, h, u: u, x.dtype))).log_softmax(-1)
    return F.kl_div(full(model.logits(x)).log_softmax(-1), teacher, log_target=True, reduction="none").sum(-1).mean()


def routed_loss(model, ids, lff, routers, sparsity, tau, noise, dtype=torch.bfloat16):
    """-> (what trains, the task's part of it, the executed share)."""
    run = []

    def rule(layer, unit, h, u):
        z = pin(gates(routers[layer][unit](full(h)), tau, noise))
        run.append(z[..., EXECUTE].mean(1))
        return mix(z, u, lff[layer][unit](full(h)) if lff is not None else None)
    ce = task_loss(model, forward(model, ids, rule, dtype), ids)
    executed = torch.stack(run).mean(0)  # [rows]
    off = 1 - sparsity - (executed if A.budget == "row" else executed.mean())
    return ce + A.budget_weight * off.abs().mean(), ce, executed.mean()


def train(model, tasks, lff, sparsity, seed, hidden):
    """-> (routers, forecasters, curve)."""
    torch.manual_seed(seed)
    rng, noise = np.random.default_rng(seed + 500), torch.Generator(DEV).manual_seed(seed)
    routers = nn.ModuleList(nn.ModuleList(Router(model.width, hidden) for _ in range(2)) for _ in range(model.layers)).to(DEV)
    groups = [{"params": list(routers.parameters()), "lr": A.lr}]
    if lff is not None and A.forecasters == "joint":
        lff = copy.deepcopy(lff).requires_grad_(True)
        groups.append({"params": list(lff.parameters()), "lr": A.joint_lr})
    opt = torch.optim.AdamW(groups, weight_decay=0.0)
    curve, began, done, step = [], time.time(), 0.0, 0
    while done < 1:
        tau = 5.0 - 4.0 * done
        for g, lr in zip(opt.param_groups, (A.lr, A.joint_lr)):
            g["lr"] = lr * (1.0 if A.schedule == "constant" else 0.5 * (1 + np.cos(np.pi * done)))
        loss, ce, executed = routed_loss(model, batch(tasks, rng, A.rows, A.length), lff, routers, sparsity, tau, noise)
        opt.zero_grad()
        loss.backward()
        for g in groups:
            nn.utils.clip_grad_norm_(g["params"], 1.0)
        opt.step()
        step += 1
        done = max(step / A.steps, (time.time() - began) / A.seconds if A.seconds > 0 else 0)
        if step % 20 == 1 or done >= 1:
            curve.append([step - 1, round(ce.item(), 4), round(1 - executed.item(), 4)])
    if lff is not None:
        lff.requires_grad_(False)
    return routers, lff, curve


def settle(model, tasks, lff, routers, seed):
    """The forecasters learn on under the decisions that are served, which do not. -> curve."""
    rng = np.random.default_rng(seed + 700)
    lff.requires_grad_(True)
    opt = torch.optim.AdamW(lff.parameters(), lr=A.joint_lr, weight_decay=0.0)
    curve, served = [], argmax(routers)
    for step in range(A.settle):
        for g in opt.param_groups:
            g["lr"] = 0.3 * A.joint_lr * 0.5 * (1 + np.cos(np.pi * step / A.settle))
        ids = batch(tasks, rng, A.rows, A.length)
        loss = task_loss(model, forward(model, ids, lambda a, b, h, u: mix(pin(served(a, b, h.detach())), u, lff[a][b](full(h)))), ids)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(lff.parameters(), 1.0)
        opt.step()
        if step % 20 == 0 or step + 1 == A.settle:
            curve.append([step, round(loss.item(), 4)])
    lff.requires_grad_(False)
    return curve


@torch.no_grad()
def calibrate(model, tasks, lff, routers, sparsity, seed):
    """Moves the approximate logit of every router by one number, found by repeated quantiles on training text: what one
    unit approximates changes what the next one sees."""
    for turn in range(3):
        rng, margin = np.random.default_rng(seed + 900), []

        def rule(layer, unit, h, u):
            w = routers[layer][unit](full(h))
            margin.append((w[..., 1] - w[..., 0])[:, 1:].flatten())
            return mix(pin(F.one_hot(w.argmax(-1), 2).float()), u, lff[layer][unit](full(h)) if lff is not None else None)
        for _ in range(4):
            forward(model, batch(tasks, rng, 8, A.length), rule)
        margin = torch.cat(margin).sort().values
        offset = -margin[int((1 - sparsity) * len(margin))].item()
        for p in routers:
            for r in p:
                r.b.bias[APPROXIMATE] += offset if turn == 0 else 0.7 * offset
    return routers


@torch.no_grad()
def evaluate(model, tasks, lff, choose):
    """choose(layer, unit, h) -> one-hot z. Returns held-out perplexity and the approximated share of every unit."""
    rng, total, share = np.random.default_rng(7), [], []
    for _ in range(A.eval_rows):
        run = []

        def rule(layer, unit, h, u):
            z = pin(choose(layer, unit, h))
            run.append(z[..., APPROXIMATE].mean().item())
            return mix(z, u, lff[layer][unit](full(h)) if lff is not None else None)
        ids = batch(tasks, rng, 1, 2048, "held")
        total.append(nll(model, forward(model, ids, rule), ids).item())
        share.append(run)
    return float(np.exp(np.mean(total))), np.mean(share, 0)


def argmax(routers):
    return lambda layer, unit, h: F.one_hot(routers[layer][unit](full(h)).argmax(-1), 2).float()


@torch.no_grad()
def diagnose(model, tasks, lff, routers):
    """R^2 of every forecaster on dense held-out activations, and Spearman of router preference and forecast error. The mean
    that R^2 compares with is over all texts: much of what attention adds is the same all through a text."""
    rng, error, total, square, pref, err, rows = np.random.default_rng(8), {}, {}, {}, {}, {}, 0
    for _ in range(8):
        def rule(layer, unit, h, u):
            key, f = (layer, unit), lff[layer][unit](full(h))
            e = (f - u.float()) ** 2
            error[key] = error.get(key, 0) + e.sum().item()
            total[key] = total.get(key, 0) + u.double().sum((0, 1))
            square[key] = square.get(key, 0) + (u.double() ** 2).sum().item()
            w = torch.zeros(*h.shape[:2], 2) if routers is None else routers[layer][unit](full(h))
            pref.setdefault(key, []).append((w[..., 1] - w[..., 0])[0, 1:].cpu().numpy())
            err.setdefault(key, []).append(e.mean(-1)[0, 1:].cpu().numpy())
            return u
        ids = batch(tasks, rng, 1, 2048, "held")
        rows += ids.numel()
        forward(model, ids, rule)
    variance = {key: square[key] - (total[key] ** 2).sum().item() / rows for key in error}
    rank = lambda x: np.argsort(np.argsort(x))  # noqa: E731
    r2 = {f"{l}.{'attn' if u == 0 else 'ffn'}": round(1 - error[l, u] / variance[l, u], 4) for l, u in error}
    rho = {f"{l}.{'attn' if u == 0 else 'ffn'}": round(float(np.corrcoef(rank(np.concatenate(pref[l, u])),
                                                                      rank(-np.concatenate(err[l, u])))[0, 1]), 4)
           for l, u in error}
    return r2, rho


@torch.no_grad()
def round_weights(module):
    for m in module.modules():
        if isinstance(m, nn.Linear):
            w = m.weight.cpu().numpy()
            if w.shape[1] % 32 == 0:
                scale, q = gguf.quantise(w)
                m.weight.copy_(torch.from_numpy((q * scale[..., None].astype(np.float32)).reshape(w.shape)))


@torch.no_grad()
def export(model, tasks, lff, routers, hidden, sparsity, seed, path):
    tensors = []

    def add(name, m):
        w = m.weight.cpu().numpy()
        tensors.append((name + ".weight", w, gguf.TYPE_Q8_0 if w.shape[1] % 32 == 0 else gguf.TYPE_F32))
        tensors.append((name + ".bias", m.bias.cpu().numpy(), gguf.TYPE_F32))
    for layer in range(model.layers):
        for unit, name in enumerate(("attn", "ffn")):
            at = f"blk.{layer}.informed.{name}."
            add(at + "router0", routers[layer][unit].a)
            add(at + "router1", routers[layer][unit].b)
            if lff is not None:
                add(at + "down", lff[layer][unit].down)
                add(at + "up", lff[layer][unit].up)
    torch.backends.cuda.matmul.allow_tf32 = False
    rng, features, logits, forecasts = np.random.default_rng(seed + 2000), [], [], []

    def rule(layer, unit, h, u):
        w = routers[layer][unit](h)
        features.append(h[0, :4].cpu().numpy())
        logits.append(w[0, :4].cpu().numpy())
        f = lff[layer][unit](h) if lff is not None else torch.zeros_like(u)
        forecasts.append(f[0, :4].cpu().numpy())
        return mix(pin(F.one_hot(w.argmax(-1), 2).float()), u, f)
    ids = batch(tasks, rng, 1, 256, "held")
    x = forward(model, ids, rule, torch.float32)
    tensors += [("golden.prompt", ids[0].float().cpu().numpy(), gguf.TYPE_F32),
                ("golden.nll", np.array([nll(model, x, ids).item()]), gguf.TYPE_F32),
                ("golden.features", np.concatenate(features), gguf.TYPE_F32),
                ("golden.logits", np.concatenate(logits), gguf.TYPE_F32),
                ("golden.forecasts", np.concatenate(forecasts), gguf.TYPE_F32)]
    k = gguf.key
    gguf.write(path, [k("general.architecture", gguf.STRING, "sluice-router"), k("general.license", gguf.STRING, "apache-2.0"),
                      k("sluice.method", gguf.STRING, "informed_routing"), k("sluice.model", gguf.STRING, model.name),
                      k("sluice.seed", gguf.U32, seed), k("sluice.informed.layers", gguf.U32, model.layers),
                      k("sluice.informed.dim", gguf.U32, model.width), k("sluice.informed.hidden", gguf.U32, hidden),
                      k("sluice.informed.rank", gguf.U32, A.rank if lff is not None else 0),
                      k("sluice.informed.silu", gguf.U32, int(A.act == "silu")),
                      k("sluice.informed.sparsity", gguf.F32, sparsity)], tensors)


def main():
    os.makedirs(A.out, exist_ok=True)
    model = FrozenLlama(A.model, DEV)
    tasks = Tasks(A.corpus, model.tokenizer(), A.megabytes, 1, A.without)
    print({k: len(v) for k, v in tasks.streams.items()}, tasks.left_out, "documents left out", flush=True)
    one = torch.tensor([1.0, 0.0], device=DEV)
    dense, _ = evaluate(model, tasks, None, lambda l, u, h: one.expand(*h.shape[:2], 2))
    print("dense perplexity", round(dense, 4), flush=True)
    d = model.width
    skip_hidden = round((2 * d * A.rank + A.rank + d + (d + 3) * A.hidden) / (d + 3))
    for seed in A.seeds:
        began = time.time()
        lff, fit_curve = fit(model, tasks, seed)
        round_weights(lff)
        report = {"seed": seed, "args": vars(A), "dense": dense, "skip_hidden": skip_hidden, "fit": fit_curve, "runs": {}}
        report["fitted_r2"] = diagnose(model, tasks, lff, None)[0]
        print(f"seed {seed} fit {fit_curve[0]} -> {fit_curve[-1]}, {time.time() - began:.0f} s", flush=True)
        for s in A.sparsity:
            r = {}
            for name in A.gates:
                f, hidden = (lff, A.hidden) if name == "lff" else (None, skip_hidden)
                routers, f, r[name + "_curve"] = train(model, tasks, f, s, seed, hidden)
                round_weights(routers)
                if A.serve == "calibrated":
                    calibrate(model, tasks, f, routers, s, seed)
                if f is not None:
                    if A.settle > 0:
                        r["settle_curve"] = settle(model, tasks, f, routers.requires_grad_(False), seed)
                    round_weights(f)
                    if A.serve == "calibrated":
                        calibrate(model, tasks, f, routers, s, seed)
                ppl, share = evaluate(model, tasks, f, argmax(routers))
                g = torch.Generator(DEV).manual_seed(seed)
                rate = share.reshape(model.layers, 2)
                coin = lambda l, u, h: F.one_hot((torch.rand(h.shape[:2], device=DEV, generator=g)  # noqa: E731
                                                  < float(rate[l, u])).long(), 2).float()
                random, _ = evaluate(model, tasks, f, coin)
                r[name] = {"perplexity": ppl, "sparsity": float(share.mean()), "random_gate": random,
                           "share": [round(float(v), 3) for v in share]}
                if f is not None:
                    r["r2"], r["spearman"] = diagnose(model, tasks, f, routers)
                export(model, tasks, f, routers, hidden, s, seed,
                       os.path.join(A.out, f"informed_routing-{name}{round(100 * s)}{A.tag}-s{seed}.gguf"))
                print(seed, s, name, {k: v for k, v in r[name].items()}, f"{time.time() - began:.0f} s", flush=True)
            print(seed, s, "r2", r.get("r2"), "spearman", r.get("spearman"), flush=True)
            report["runs"][str(s)] = r
        with open(os.path.join(A.out, f"informed_routing{A.tag}-s{seed}.json"), "w") as f:
            json.dump(report, f, indent=1)


if __name__ == "__main__":
    main()
