#!/usr/bin/env python3
"""Trains a small BERT-style encoder that says which task family a query is of, and converts its layers by SHRP, specialized
head routing and pruning (arXiv 2512.20635).

  --stage dense   masked language modelling on documentation and training queries, then the classifier
  --stage shrp    on top of that encoder, per seed: Expert Attention in half of the layers and in all but one, routing,
                  usage, the cut to the most used head, and the controls: a random head after the same training, and a
                  random head from the first step

Only converted layers and the classifier train; the rest of the encoder keeps its weights, so a conversion is a small file.
One GPU, a few minutes. Example:
  shrp.py --stage dense --vocab sluice-mini-q8_0.gguf --corpus corpus.txt.xz --queries pool_a.jsonl.gz mmlu_pro.jsonl.gz --out out
  shrp.py --stage shrp --seeds 1 2 3 4 5 ... (same arguments)
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
import queries  # noqa: E402
from frozen_llama import FrozenLlama  # noqa: E402
from tasks import Tasks  # noqa: E402

P = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
P.add_argument("--stage", choices=["dense", "shrp"], required=True)
P.add_argument("--vocab", required=True, help="GGUF file whose tokenizer is used and copied")
P.add_argument("--corpus", required=True)
P.add_argument("--queries", nargs="+", required=True)
P.add_argument("--out", required=True)
P.add_argument("--seeds", type=int, nargs="+", default=[1])
P.add_argument("--layers", type=int, default=12)
P.add_argument("--width", type=int, default=192)
P.add_argument("--heads", type=int, default=12)
P.add_argument("--ffn", type=int, default=768)
P.add_argument("--context", type=int, default=128)
P.add_argument("--expand", type=int, default=24, help="width of the shared expander: 96 at BERT-base's width of 768")
P.add_argument("--mlm-steps", type=int, default=4000)
P.add_argument("--mlm-rows", type=int, default=256)
P.add_argument("--mlm-lr", type=float, default=7e-4)
P.add_argument("--epochs", type=int, default=12)
P.add_argument("--rows", type=int, default=128)
P.add_argument("--routed-epochs", type=int, default=8)
P.add_argument("--cut-epochs", type=int, default=3, help="after the cut, without the router")
P.add_argument("--teacher", type=float, default=1.0, help="alpha, of the teacher's logits; published: none named")
P.add_argument("--hidden", type=float, default=1.0, help="beta, of the dense layers' outputs; published: none named")
P.add_argument("--harden", type=float, default=0.1, help="of the entropy of the mean gate, growing over training")
P.add_argument("--uniform", type=float, default=0.1, help="share of the steps with a random expert, against collapse")
P.add_argument("--runs", nargs="+", choices=["half", "most"], default=["half", "most"], help="layers converted: half, all but one")
P.add_argument("--route", choices=["sequence", "token"], default="sequence")
P.add_argument("--order", choices=["top", "bottom"], default="top", help="which layers are converted first")
P.add_argument("--expander-init", choices=["ridge", "random"], default="ridge")
P.add_argument("--lr", type=float, default=2e-3)
P.add_argument("--device", default="cuda")
P.add_argument("--megabytes", type=int, default=12)
A = P.parse_args()
DEV, D, H, DH = A.device, A.width, A.heads, A.width // A.heads
MASK_TOKEN = "\u0100"  # what masked language modelling hides a token behind: the byte 0, which no text holds


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D) for _ in range(4))
        self.up, self.down = nn.Linear(D, A.ffn), nn.Linear(A.ffn, D)
        self.n1, self.n2 = nn.LayerNorm(D, eps=1e-12), nn.LayerNorm(D, eps=1e-12)
        self.drop = nn.Dropout(0.1)

    def residual(self, x, mask):  # what the last norm gets
        o = heads(x, self.q, self.k, self.v, H, mask).transpose(1, 2).flatten(2)
        y = self.n1(x + self.drop(self.o(o)))
        return y + self.drop(self.down(F.gelu(self.up(y), approximate="tanh")))

    def forward(self, x, mask):
        return self.n2(self.residual(x, mask))


def heads(x, q, k, v, count, mask):  # -> [b, heads, n, d]
    b, n, _ = x.shape
    split = lambda m: m(x).view(b, n, count, DH).transpose(1, 2)  # noqa: E731
    return F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=mask[:, None, None, :])


class Expert(nn.Module):
    """Every head an expert, one shared expander in place of output projection and FFN, top-1 routing."""

    def __init__(self, dense):
        super().__init__()
        self.q, self.k, self.v, self.n2 = (copy(m) for m in (dense.q, dense.k, dense.v, dense.n2))
        self.router = nn.Linear(D, H)
        nn.init.normal_(self.router.weight, std=0.02)
        nn.init.zeros_(self.router.bias)
        self.up, self.down = nn.Linear(DH, A.expand), nn.Linear(A.expand, D)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        self.kept = None     # one head for everything, once cut
        self.forced = False  # routing is off: a random expert a sequence
        self.gate = self.pick = None

    def forward(self, x, mask):
        if self.kept is not None:  # only this head's rows take part
            rows = slice(self.kept * DH, (self.kept + 1) * DH)
            part = lambda m: F.linear(x, m.weight[rows], m.bias[rows])[:, None]  # noqa: E731
            o = F.scaled_dot_product_attention(part(self.q), part(self.k), part(self.v), attn_mask=mask[:, None, None, :])[:, 0]
            return self.n2(x + self.expander(o))
        all_heads = heads(x, self.q, self.k, self.v, H, mask)  # [b, H, n, d]
        seen = mask[..., None].to(x.dtype)
        pooled = x if A.route == "token" else ((x * seen).sum(1) / seen.sum(1))[:, None]
        logits = self.router(pooled).float()  # [b, n or 1, H]
        p = logits.softmax(-1)
        pick = torch.randint(0, H, logits.shape[:2], device=x.device) if self.forced else logits.argmax(-1)
        self.gate, self.pick = p, pick
        hot = F.one_hot(pick, H).to(x.dtype)
        top = (p * hot).sum(-1, keepdim=True)
        o = torch.einsum("bnh,bhnd->bnd", hot.expand(-1, x.shape[1], -1), all_heads)
        scale = (1 + top - top.detach()).to(x.dtype)  # 1 forward; carries the gradient to the router
        return self.n2(x + scale * self.expander(o))

    def expander(self, o):
        return self.down(F.gelu(self.up(o), approximate="tanh"))


def copy(m):
    import copy as c
    return c.deepcopy(m)


class Encoder(nn.Module):
    def __init__(self, vocab, classes):
        super().__init__()
        self.token, self.place = nn.Embedding(vocab, D), nn.Embedding(A.context, D)
        self.norm, self.drop = nn.LayerNorm(D, eps=1e-12), nn.Dropout(0.1)
        self.layers = nn.ModuleList(Dense() for _ in range(A.layers))
        self.cls = nn.Linear(D, classes)
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Embedding)):
                nn.init.normal_(m.weight, std=0.04)
            if isinstance(m, nn.Linear):
                nn.init.zeros_(m.bias)

    def embed(self, ids):
        return self.drop(self.norm(self.token(ids) + self.place.weight[:ids.shape[1]]))

    def body(self, ids, mask, keep=None):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, mask)
            if keep is not None:
                keep.append(x)
        return x

    def forward(self, ids, mask, keep=None):
        x, seen = self.body(ids, mask, keep), mask[..., None]
        return self.cls((x.float() * seen).sum(1) / seen.sum(1))


def pad(rows):
    n = max(map(len, rows))
    ids, mask = np.zeros((len(rows), n), np.int64), np.zeros((len(rows), n), bool)
    for i, r in enumerate(rows):
        ids[i, :len(r)], mask[i, :len(r)] = r, True
    return torch.from_numpy(ids).to(DEV), torch.from_numpy(mask).to(DEV)


def batches(data, rows, rng=None):
    order = rng.permutation(len(data)) if rng is not None else np.argsort([len(r) for r, _ in data], kind="stable")
    for at in range(0, len(order), rows):
        part = [data[i] for i in order[at:at + rows]]
        yield pad([r for r, _ in part]), torch.tensor([c for _, c in part], device=DEV)


def half():
    return torch.autocast(DEV, torch.bfloat16, enabled=DEV == "cuda")


@torch.no_grad()
def accuracy(model, data):
    model.eval()
    right = 0
    for (ids, mask), want in batches(data, 512):
        with half():
            right += (model(ids, mask).argmax(-1) == want).sum().item()
    model.train()
    return right / len(data)


def optimizer(params, lr, steps):
    opt = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    return opt, torch.optim.lr_scheduler.LambdaLR(
        opt, lambda s: min(1.0, (s + 1) / max(1, steps // 12)) * 0.5 * (1 + np.cos(np.pi * min(1.0, s / steps))))


def pretrain(model, stream, texts, hidden, report):
    mix = np.concatenate([stream] + [np.concatenate([t, [0]]) for t in texts] * 2)
    rng = np.random.default_rng(11)
    transform = nn.Sequential(nn.Linear(D, D), nn.GELU(approximate="tanh"), nn.LayerNorm(D)).to(DEV)
    opt, sched = optimizer(list(model.parameters()) + list(transform.parameters()), A.mlm_lr, A.mlm_steps)
    source, curve, began = torch.from_numpy(mix).to(DEV), [], time.time()
    everything = torch.ones(A.mlm_rows, A.context, dtype=torch.bool, device=DEV)
    for step in range(A.mlm_steps):
        at = torch.from_numpy(rng.integers(0, len(mix) - A.context, A.mlm_rows)).to(DEV)
        ids = source[at[:, None] + torch.arange(A.context, device=DEV)]
        hide = torch.rand(ids.shape, device=DEV) < 0.15
        fate = torch.rand(ids.shape, device=DEV)
        shown = torch.where(hide & (fate < 0.8), hidden, ids)
        shown = torch.where(hide & (fate > 0.9), torch.randint_like(ids, model.token.num_embeddings), shown)
        with half():
            y = transform(model.body(shown, everything)[hide])
            loss = F.cross_entropy((y @ model.token.weight.to(y.dtype).T).float(), ids[hide])
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        sched.step()
        if step % 100 == 0 or step + 1 == A.mlm_steps:
            curve.append([step, round(loss.item(), 4)])
            if step % 500 == 0:
                print("mlm", *curve[-1], f"{time.time() - began:.0f} s", flush=True)
    report["mlm"] = curve


def train(model, params, data, epochs, lr, seed, teacher=None, on_step=None):
    steps = epochs * -(-len(data) // A.rows)
    opt, sched = optimizer(params, lr, steps)
    rng, step, curve = np.random.default_rng(seed), 0, []
    for _ in range(epochs):
        for (ids, mask), want in batches(data, A.rows, rng):
            if on_step is not None:
                on_step(step / steps)
            kept, told = [], []
            with half():
                logits = model(ids, mask, kept)
                loss = F.cross_entropy(logits, want, label_smoothing=0.0)
            if teacher is not None:
                with torch.no_grad(), half():
                    target = teacher(ids, mask, told).float()
                loss = loss + A.teacher * F.kl_div(logits.float().log_softmax(-1), target.log_softmax(-1), log_target=True,
                                                   reduction="batchmean")
                off = [((a.float() - b.float()) ** 2)[mask].mean() for a, b, l in zip(kept, told, model.layers)
                       if isinstance(l, Expert)]
                loss = loss + A.hidden * sum(off) / len(off)
            for layer in model.layers:
                if isinstance(layer, Expert) and layer.kept is None:
                    weight = layer.gate if A.route == "sequence" else layer.gate * mask[..., None]
                    mean = weight.sum((0, 1)) / weight.sum()
                    loss = loss - A.harden * step / steps * (mean * (mean + 1e-9).log()).sum()
            opt.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            opt.step()
            sched.step()
            if step % 50 == 0:
                curve.append([step, round(loss.item(), 4)])
            step += 1
    return curve


@torch.no_grad()
def ridge(model, converted, data):
    """The expander's second matrix from the dense layer's residual, pooled over experts."""
    dim = A.expand + 1
    sums = {i: (torch.zeros(dim, dim, device=DEV, dtype=torch.float64), torch.zeros(dim, D, device=DEV, dtype=torch.float64))
            for i in converted}
    for n, ((ids, mask), _) in enumerate(batches(data, A.rows, np.random.default_rng(5))):
        x = model.embed(ids)
        for i, layer in enumerate(model.layers):
            new, dense = sums.get(i), model.source[i]
            if new is not None:
                want = (dense.residual(x, mask) - x)[mask].double()
                o = heads(x, layer.q, layer.k, layer.v, H, mask).permute(0, 2, 1, 3)[mask]  # [t, H, d]
                f = F.gelu(layer.up(o), approximate="tanh").double()
                f = torch.cat([f, torch.ones_like(f[..., :1])], -1)
                new[0].add_(torch.einsum("thi,thj->ij", f, f))
                new[1].add_(torch.einsum("thi,td->id", f, want))
            x = dense(x, mask)
        if n == 15:
            break
    for i, (ff, fy) in sums.items():
        w = torch.linalg.solve(ff + 1e-3 * ff.diagonal().mean() * torch.eye(dim, device=DEV, dtype=torch.float64), fy)
        model.layers[i].down.weight.copy_(w[:-1].T.float())
        model.layers[i].down.bias.copy_(w[-1].float())


@torch.no_grad()
def usage(model, converted, data):
    """Share of the training queries (or of their tokens: padding does not vote) that each expert gets, without noise."""
    model.eval()
    count = {i: torch.zeros(H, device=DEV, dtype=torch.float64) for i in converted}
    for (ids, mask), _ in batches(data, 512):
        with half():
            model(ids, mask)
        for i in converted:
            pick = model.layers[i].pick
            pick = pick[mask] if A.route == "token" else pick.flatten()
            count[i] += torch.bincount(pick, minlength=H)
    model.train()
    return {i: (c / c.sum()).cpu().numpy() for i, c in count.items()}


def names(i, layer):
    p, both = f"blk.{i}.", lambda n, m: [(n + ".weight", m.weight), (n + ".bias", m.bias)]  # noqa: E731
    if isinstance(layer, Expert):
        kept = layer.kept
        out = both(p + "layer_output_norm", layer.n2) + both(p + "shrp.up", layer.up) + both(p + "shrp.down", layer.down)
        for n in "qkv":
            m = getattr(layer, n)
            rows = slice(None) if kept is None else slice(kept * DH, (kept + 1) * DH)
            out += [(f"{p}shrp.{n}.weight", m.weight[rows]), (f"{p}shrp.{n}.bias", m.bias[rows])]
        return out if kept is not None else out + both(p + "shrp.router", layer.router)
    return sum((both(p + n, m) for n, m in (("attn_q", layer.q), ("attn_k", layer.k), ("attn_v", layer.v), ("attn_output", layer.o),
                                            ("attn_output_norm", layer.n1), ("ffn_up", layer.up), ("ffn_down", layer.down),
                                            ("layer_output_norm", layer.n2))), [])


def parameters(model, only=None):
    """Of the whole model, or of the layers in `only` and the classifier -> [(name, parameter)]."""
    both = lambda n, m: [(n + ".weight", m.weight), (n + ".bias", m.bias)]  # noqa: E731
    named = [] if only is not None else [("token_embd.weight", model.token.weight), ("position_embd.weight", model.place.weight),
                                         *both("token_embd_norm", model.norm)]
    for i, layer in enumerate(model.layers):
        named += names(i, layer) if only is None or i in only else []
    return named + both("cls.output", model.cls)


def tensors(model, only=None):
    """Rounds what will be stored to how it will be stored, in place, so that golden values are of the stored model."""
    out = []
    for name, w in parameters(model, only):
        x = w.detach().float().cpu().numpy()
        kind = gguf.TYPE_F32 if x.ndim == 1 else gguf.TYPE_Q8_0 if only is None else gguf.TYPE_F16
        if kind == gguf.TYPE_Q8_0:
            scale, q = gguf.quantise(x)
            x = (scale.astype(np.float32)[..., None] * q).reshape(x.shape)
        elif kind == gguf.TYPE_F16:
            x = x.astype(np.float16).astype(np.float32)
        with torch.no_grad():
            w.copy_(torch.from_numpy(x).to(DEV))
        out.append((name, x, kind))
    return out


@torch.no_grad()
def golden(model, vocab):
    """Logits, and the picks of routed layers, of a few sequences of random tokens."""
    if DEV == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    model.eval()
    rng, ids, logits, picks = np.random.default_rng(99), [], [], []
    for n in (1, 5, 37, 128, 100, 64):
        row = rng.integers(2, vocab, min(n, A.context))
        logits.append(model(*pad([row]))[0].float().cpu().numpy())
        picks.append([l.pick[0, 0].item() for l in model.layers if isinstance(l, Expert) and l.kept is None])
        ids += [len(row), *row]
    model.train()
    out = [("golden.ids", np.array(ids, np.float32), gguf.TYPE_F32), ("golden.logits", np.stack(logits), gguf.TYPE_F32)]
    return out + ([("golden.picks", np.array(picks, np.float32), gguf.TYPE_F32)] if picks[0] and A.route == "sequence" else [])


def keys(extra):
    k = gguf.key
    return [k("general.architecture", gguf.STRING, "bert"), k("general.license", gguf.STRING, "apache-2.0"), *extra]


def export_dense(model, families, source, path):
    k, t = gguf.key, tensors(model)
    shape = [("block_count", A.layers), ("embedding_length", D), ("attention.head_count", H), ("feed_forward_length", A.ffn),
             ("context_length", A.context)]
    gguf.write(path, keys([k("general.name", gguf.STRING, "sluice-intent"),
                           *(k(f"bert.{n}", gguf.U32, v) for n, v in shape),
                           k("bert.attention.layer_norm_epsilon", gguf.F32, 1e-12),
                           gguf.array("bert.classifier.output_labels", gguf.STRING, families),
                           k("tokenizer.ggml.model", gguf.STRING, "gpt2"),
                           gguf.array("tokenizer.ggml.tokens", gguf.STRING, source["tokenizer.ggml.tokens"]),
                           gguf.array("tokenizer.ggml.merges", gguf.STRING, source["tokenizer.ggml.merges"]),
                           k("tokenizer.ggml.eos_token_id", gguf.U32, source.get("tokenizer.ggml.eos_token_id", 0))]),
               t + golden(model, model.token.num_embeddings))


def export_shrp(model, converted, counts, seed, path):
    k, t = gguf.key, tensors(model, set(converted))
    if model.layers[converted[0]].kept is None:
        t += [(f"blk.{i}.shrp.usage", np.asarray(counts[i], np.float32), gguf.TYPE_F32) for i in converted]
        form = "routed"
    else:
        form = "pruned"
    gguf.write(path, keys([k("sluice.method", gguf.STRING, "shrp"), k("sluice.model", gguf.STRING, "sluice-intent"),
                           k("sluice.seed", gguf.U32, seed), k("sluice.shrp.form", gguf.STRING, form),
                           k("sluice.shrp.expand", gguf.U32, A.expand), k("sluice.shrp.width", gguf.U32, D),
                           k("sluice.shrp.heads", gguf.U32, H),
                           gguf.array("sluice.shrp.layers", gguf.U32, converted)]),
               t + golden(model, model.token.num_embeddings))


def shrp(dense, data, name, count, seed):
    """One conversion of `count` layers -> what was measured."""
    converted = list(range(A.layers - count, A.layers)) if A.order == "top" else list(range(count))
    trainable = lambda m: [p for i in converted for p in m.layers[i].parameters()] + list(m.cls.parameters())  # noqa: E731

    def fresh():
        torch.manual_seed(seed)
        model = copy(dense)
        model.source = [copy(l).eval() for l in dense.layers]
        for i in converted:
            model.layers[i] = Expert(dense.layers[i]).to(DEV)
        for p in model.parameters():
            p.requires_grad_(False)
        for p in trainable(model):
            p.requires_grad_(True)
        if A.expander_init == "ridge":
            ridge(model.eval(), converted, data["train"])
        del model.source
        for m in model.modules():  # what is frozen stays as it is served
            if isinstance(m, nn.Dropout):
                m.p = 0.0
        return model.train()

    rng = np.random.default_rng(seed + 500)
    began, r = time.time(), {"layers": converted}
    model = fresh()

    def warm(progress):
        for i in converted:
            model.layers[i].forced = progress < A.uniform

    r["curve"] = train(model, trainable(model), data["train"], A.routed_epochs, A.lr, seed, dense, warm)
    warm(1.0)
    counts = usage(model, converted, data["train"])
    r["usage"] = {i: [round(float(x), 4) for x in u] for i, u in counts.items()}
    r["routed"] = accuracy(model, data["test"])
    if seed == A.seeds[0] or len(A.seeds) == 1:
        export_shrp(copy(model), converted, counts, seed, os.path.join(A.out, f"shrp-{name}-routed-s{seed}.gguf"))
    used = {i: int(np.argmax(u)) for i, u in counts.items()}
    other = {i: int(rng.choice([h for h in range(H) if h != used[i]])) for i in converted}

    def cut(m, keep, label):
        for i in converted:
            m.layers[i].kept = keep[i]
        r[label + "_cut"] = accuracy(m, data["test"])
        train(m, trainable(m), data["train"], A.cut_epochs, A.lr / 2, seed + 1, dense)
        r[label] = accuracy(m, data["test"])
        export_shrp(m, converted, counts, seed, os.path.join(A.out, f"shrp-{name}-{label}-s{seed}.gguf"))

    cut(copy(model), used, "usage_head")
    cut(copy(model), other, "random_head")
    fixed = fresh()  # a random head from the first step, as many steps
    for i in converted:
        fixed.layers[i].kept = other[i]
    train(fixed, trainable(fixed), data["train"], A.routed_epochs, A.lr, seed, dense)
    train(fixed, trainable(fixed), data["train"], A.cut_epochs, A.lr / 2, seed + 1, dense)
    r["fixed_head"] = accuracy(fixed, data["test"])
    print(name, seed, {k: round(v, 4) for k, v in r.items() if isinstance(v, float)}, f"{time.time() - began:.0f} s", flush=True)
    return r


def main():
    os.makedirs(A.out, exist_ok=True)
    torch.manual_seed(1)
    llama = FrozenLlama(A.vocab, DEV)
    tokenizer = llama.tokenizer()
    families, texts = queries.load(A.queries)
    data = {s: [(np.array(e.ids[:A.context], np.int64), c) for e, (_, c) in
                zip(tokenizer.encode_batch([t for t, _ in rows]), rows) if e.ids] for s, rows in texts.items()}
    print({s: len(d) for s, d in data.items()}, len(families), "families", flush=True)
    model = Encoder(len(llama.keys["tokenizer.ggml.tokens"]), len(families)).to(DEV)
    saved = os.path.join(A.out, "intent-encoder-q8_0.gguf")
    if A.stage == "dense":
        report = {"args": vars(A), "families": families}
        stream = Tasks(A.corpus, tokenizer, A.megabytes, 1).streams["train"]
        pretrain(model, stream, [r for r, _ in data["train"]], llama.keys["tokenizer.ggml.tokens"].index(MASK_TOKEN), report)
        report["curve"] = train(model, list(model.parameters()), data["train"], A.epochs, 4e-4, 1)
        export_dense(model, families, llama.keys, saved)
        report["accuracy"] = accuracy(model, data["test"])
        print("dense accuracy", report["accuracy"], flush=True)
        with open(os.path.join(A.out, "intent-encoder.json"), "w") as f:
            json.dump(report, f, indent=1)
        return
    stored = gguf.read(saved)[1]
    with torch.no_grad():
        for name, w in parameters(model):
            w.copy_(torch.from_numpy(stored[name].copy()).to(DEV))
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    for seed in A.seeds:
        report = {"seed": seed, "args": vars(A), "dense": accuracy(model, data["test"]), "runs": {}}
        for name in A.runs:
            report["runs"][name] = shrp(model.train(), data, name, A.layers // 2 if name == "half" else A.layers - 1, seed)
        with open(os.path.join(A.out, f"shrp-{'-'.join(A.runs)}-s{seed}.json"), "w") as f:
            json.dump(report, f, indent=1)


if __name__ == "__main__":
    main()
