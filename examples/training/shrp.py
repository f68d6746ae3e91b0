#!/usr/bin/env python3
"""Trains a small BERT-style encoder that says which task family a query is of, and converts its layers by SHRP, specialized
head routing and pruning (arXiv 2512.20635).

  --stage dense   masked language modelling on documentation and training queries, then the classifier
  --stage heads   on top of that encoder, how much the choice of the head is worth: one layer cut to each of its heads, and tuned
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
from gates import straight_through  # noqa: E402
from frozen_llama import FrozenLlama, full  # noqa: E402
from tasks import Tasks  # noqa: E402

P = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
P.add_argument("--stage", choices=["dense", "heads", "shrp"], required=True)
P.add_argument("--task", choices=["families", "recall", "match"], default="families",
               help="families: of queries; match: tokens that are a name and a value stand in documentation text, a name is asked "
                    "about at its end and the class is its value, so that some head has to find the token of the same name; "
                    "recall: name and value are two tokens, which takes a head that looks back by one besides")
P.add_argument("--pairs", type=int, default=4, help="match, recall: names in a text")
P.add_argument("--text", type=int, default=24, help="match, recall: tokens of a text at most, without them")
P.add_argument("--examples", type=int, default=60000, help="match, recall: training texts")
P.add_argument("--tests", type=int, default=4096, help="match, recall: held-out texts")
P.add_argument("--dense-lr", type=float, default=4e-4)
P.add_argument("--probe", type=int, nargs="*", help="heads: the layers; default: all")
P.add_argument("--vocab", required=True, help="GGUF file whose tokenizer is used and copied")
P.add_argument("--corpus", required=True)
P.add_argument("--queries", nargs="*", default=[], help="of the task families")
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
P.add_argument("--gate", choices=["gumbel", "scale"], default="gumbel",
               help="gumbel: the router learns from what every expert would have given; scale: from the picked one alone")
P.add_argument("--noise", type=float, default=0.5, help="gumbel: share of the steps with noise; hardening begins after it")
P.add_argument("--usage", choices=["noise", "end"], default="noise", help="when usage is read: as the noise ends, or after training")
P.add_argument("--qkv", choices=["frozen", "after_cut", "trained"], default="frozen",
               help="frozen: a head keeps what it looks at; after_cut: from the cut on; trained: never")
P.add_argument("--controls", type=int, default=1, help="random heads a seed")
P.add_argument("--runs", nargs="+", choices=["half", "most"], default=["half", "most"], help="layers converted: half, all but one")
P.add_argument("--route", choices=["sequence", "token"], default="sequence")
P.add_argument("--order", choices=["top", "bottom"], default="top", help="which layers are converted first")
P.add_argument("--expander-init", choices=["ridge", "random"], default="ridge")
P.add_argument("--lr", type=float, default=2e-3)
P.add_argument("--device", default="cuda")
P.add_argument("--megabytes", type=int, default=12)
P.add_argument("--tag", default="", help="added to the names of the files")
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
        self.noisy = False
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
        logits = full(self.router(pooled))  # [b, n or 1, H]
        p = logits.softmax(-1)
        drawn = logits
        if self.noisy:
            u = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            drawn = logits - torch.log(-torch.log(u))
        pick = torch.randint(0, H, logits.shape[:2], device=x.device) if self.forced else drawn.argmax(-1)
        self.gate, self.pick = p, pick
        hot = F.one_hot(pick, H).to(x.dtype)
        if A.gate == "gumbel" and self.training and not self.forced:
            z = straight_through(hot, drawn.softmax(-1).to(x.dtype))
            return self.n2(x + torch.einsum("bnh,bhnd->bnd", z.expand(-1, x.shape[1], -1), self.expander(all_heads)))
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
        return self.cls((full(x) * seen).sum(1) / seen.sum(1))


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


def objective(model, ids, mask, want, teacher, hard):
    """Cross-entropy; the teacher's logits and layer outputs; and, by `hard`, the entropy of what the routers choose."""
    kept, told = [], []
    with half():
        logits = model(ids, mask, kept)
        loss = F.cross_entropy(logits, want)
    if teacher is not None:
        with torch.no_grad(), half():
            target = full(teacher(ids, mask, told))
        loss = loss + A.teacher * F.kl_div(full(logits).log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean")
        off = [((full(a) - full(b)) ** 2)[mask].mean() for a, b, l in zip(kept, told, model.layers) if isinstance(l, Expert)]
        loss = loss + A.hidden * sum(off) / len(off)
    for layer in model.layers:
        if isinstance(layer, Expert) and layer.kept is None and hard > 0:
            weight = layer.gate if A.route == "sequence" else layer.gate * mask[..., None]
            mean = weight.sum((0, 1)) / weight.sum()
            loss = loss - A.harden * hard * (mean * (mean + 1e-9).log()).sum()
    return loss


def train(model, params, data, epochs, lr, seed, teacher=None, on_step=None):
    steps = epochs * -(-len(data) // A.rows)
    opt, sched = optimizer(params, lr, steps)
    rng, step, curve = np.random.default_rng(seed), 0, []
    for _ in range(epochs):
        for (ids, mask), want in batches(data, A.rows, rng):
            if on_step is not None:
                on_step(step / steps)
            loss = objective(model, ids, mask, want, teacher, max(0.0, step / steps - A.noise) / max(1e-9, 1 - A.noise))
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
    """The expander's second matrix from the dense layer's residual, of the kept head or pooled over all."""
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
                o = o if layer.kept is None else o[:, layer.kept:layer.kept + 1]
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


def planted(stream, rng, count, vocab):
    """Documentation text with names and values, and a name that is asked about at the end -> [(ids, class)]. Tokens of the
    end of the vocabulary stand for nothing else here. recall: a name's value is the next token; match: a token is both."""
    names, values = (64, 16) if A.task == "recall" else (16, 8)
    free = vocab - names - names * values
    out = []
    for _ in range(count):
        n = int(rng.integers(A.text // 2, A.text))
        at = int(rng.integers(0, len(stream) - n))
        text = np.minimum(stream[at:at + n], free - 1)
        who, what = rng.permutation(names)[:A.pairs], rng.permutation(values)[:A.pairs]
        parts, last = [], 0
        for cut, name, value in zip(np.sort(rng.integers(0, n + 1, A.pairs)), who, what):
            said = [vocab - 1 - name, free + value] if A.task == "recall" else [free + name * values + value]
            parts += [text[last:cut], said]
            last = cut
        asked = int(rng.integers(A.pairs))
        ids = np.concatenate(parts + [text[last:], [vocab - 1 - who[asked]]]).astype(np.int64)
        out.append((ids, int(what[asked])))
    return [f"value {i}" for i in range(values)], out


def converted_model(dense, data, converted, seed, kept=None):
    """The encoder with these layers as Expert Attention, or cut to the heads `kept` from the start."""
    torch.manual_seed(seed)
    model = copy(dense)
    model.source = [copy(l).eval() for l in dense.layers]
    for i in converted:
        model.layers[i] = Expert(dense.layers[i]).to(DEV)
        model.layers[i].kept = None if kept is None else kept[i]
    for p in model.parameters():
        p.requires_grad_(False)
    for p in trainable(model, converted, cut=kept is not None):
        p.requires_grad_(True)
    if A.expander_init == "ridge":
        ridge(model.eval(), converted, data["train"])
    del model.source
    for m in model.modules():  # what is frozen stays as it is served
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    return model.train()


def trainable(model, converted, cut):
    still = A.qkv == "frozen" or A.qkv == "after_cut" and cut
    of = lambda layer: [p for n, p in layer.named_parameters() if not (still and n[0] in "qkv")]  # noqa: E731
    return [p for i in converted for p in of(model.layers[i])] + list(model.cls.parameters())


def tune(model, converted, data, teacher, epochs, lr, seed):
    """Trains what is cut."""
    for p in model.parameters():
        p.requires_grad_(False)
    params = trainable(model, converted, cut=True)
    for p in params:
        p.requires_grad_(True)
    train(model, params, data["train"], epochs, lr, seed, teacher)
    return accuracy(model, data["test"])


def heads_of_a_layer(dense, data, layer):
    """What is left with one layer cut to each of its heads, right after and tuned."""
    r = {"cut": [], "tuned": []}
    for head in range(H):
        model = converted_model(dense, data, [layer], 1, {layer: head})
        r["cut"].append(accuracy(model, data["test"]))
        r["tuned"].append(tune(model, [layer], data, dense, A.cut_epochs, A.lr / 2, 1))
    r["spread"] = max(r["tuned"]) - min(r["tuned"])
    print("layer", layer, {k: np.round(v, 4).tolist() for k, v in r.items()}, flush=True)
    return r


def shrp(dense, data, name, count, seed):
    """One conversion of `count` layers -> what was measured."""
    converted = list(range(A.layers - count, A.layers)) if A.order == "top" else list(range(count))
    rng = np.random.default_rng(seed + 500)
    began, r = time.time(), {"layers": converted}
    model, early = converted_model(dense, data, converted, seed), {}

    def on_step(progress):
        for i in converted:
            model.layers[i].forced = progress < A.uniform
            model.layers[i].noisy = A.gate == "gumbel" and progress < A.noise
        if progress >= A.noise and not early:
            early.update(usage(model, converted, data["train"]))

    params = trainable(model, converted, cut=False)
    r["curve"] = train(model, params, data["train"], A.routed_epochs, A.lr, seed, dense, on_step)
    on_step(1.0)
    late = usage(model, converted, data["train"])
    counts = early if A.usage == "noise" else late
    r["usage"] = {i: [round(float(x), 4) for x in u] for i, u in counts.items()}
    r["usage_end"] = {i: [round(float(x), 4) for x in u] for i, u in late.items()}
    r["routed"] = accuracy(model, data["test"])
    if seed == 1:
        export_shrp(copy(model), converted, counts, seed, os.path.join(A.out, f"shrp-{name}{A.tag}-routed-s{seed}.gguf"))
    used = {i: int(np.argmax(u)) for i, u in counts.items()}
    others = [{i: int(rng.choice([h for h in range(H) if h != used[i]])) for i in converted} for _ in range(A.controls)]

    def cut(keep, label):
        m = copy(model)
        for i in converted:
            m.layers[i].kept = keep[i]
        r.setdefault(label + "_cut", []).append(accuracy(m, data["test"]))
        r.setdefault(label, []).append(tune(m, converted, data, dense, A.cut_epochs, A.lr / 2, seed + 1))
        if len(r[label]) == 1:
            export_shrp(m, converted, counts, seed, os.path.join(A.out, f"shrp-{name}{A.tag}-{label}-s{seed}.gguf"))

    cut(used, "usage_head")
    for other in others:
        cut(other, "random_head")
        fixed = converted_model(dense, data, converted, seed, other)  # a random head from the first step, as many steps
        tune(fixed, converted, data, dense, A.routed_epochs, A.lr, seed)
        r.setdefault("fixed_head", []).append(tune(fixed, converted, data, dense, A.cut_epochs, A.lr / 2, seed + 1))
    print(name, seed, {k: np.round(v, 4).tolist() for k, v in r.items() if k in ("routed", "usage_head", "random_head", "fixed_head",
          "usage_head_cut", "random_head_cut")}, used, f"{time.time() - began:.0f} s", flush=True)
    return r


def load_data(tokenizer, vocab):
    if A.task != "families":
        streams = Tasks(A.corpus, tokenizer, A.megabytes, 1).streams
        families, test = planted(streams["held"], np.random.default_rng(4), A.tests, vocab)
        return families, {"train": planted(streams["train"], np.random.default_rng(3), A.examples, vocab)[1], "test": test}
    families, texts = queries.load(A.queries)
    return families, {s: [(np.array(e.ids[:A.context], np.int64), c) for e, (_, c) in
                          zip(tokenizer.encode_batch([t for t, _ in rows]), rows) if e.ids] for s, rows in texts.items()}


def train_dense(model, data, families, llama, tokenizer, saved):
    report = {"args": vars(A), "families": families}
    if A.mlm_steps > 0:
        stream = Tasks(A.corpus, tokenizer, A.megabytes, 1).streams["train"]
        hidden = llama.keys["tokenizer.ggml.tokens"].index(MASK_TOKEN)
        pretrain(model, stream, [r for r, _ in data["train"]], hidden, report)
    report["curve"] = train(model, list(model.parameters()), data["train"], A.epochs, A.dense_lr, 1)
    export_dense(model, families, llama.keys, saved)
    report["accuracy"] = accuracy(model, data["test"])
    print("dense accuracy", report["accuracy"], report["curve"][::20], flush=True)
    return report


def save(name, report):
    with open(os.path.join(A.out, name), "w") as f:
        json.dump(report, f, indent=1)


def main():
    os.makedirs(A.out, exist_ok=True)
    torch.manual_seed(1)
    llama = FrozenLlama(A.vocab, DEV)
    tokenizer, vocab = llama.tokenizer(), len(llama.keys["tokenizer.ggml.tokens"])
    families, data = load_data(tokenizer, vocab)
    print({s: len(d) for s, d in data.items()}, len(families), "families", flush=True)
    model = Encoder(vocab, len(families)).to(DEV)
    stem = "intent-encoder" if A.task == "families" else f"{A.task}-encoder{A.tag}"
    saved = os.path.join(A.out, stem + "-q8_0.gguf")
    if A.stage == "dense":
        return save(stem + ".json", train_dense(model, data, families, llama, tokenizer, saved))
    stored = gguf.read(saved)[1]
    with torch.no_grad():
        for name, w in parameters(model):
            w.copy_(torch.from_numpy(stored[name].copy()).to(DEV))
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    whole = accuracy(model, data["test"])
    if A.stage == "heads":
        layers = {i: heads_of_a_layer(model.train(), data, i) for i in (A.probe or range(A.layers))}
        return save(f"shrp-heads-{A.task}{A.tag}.json", {"args": vars(A), "dense": whole, "layers": layers})
    for seed in A.seeds:
        report = {"seed": seed, "args": vars(A), "dense": whole, "runs": {}}
        for name in A.runs:
            report["runs"][name] = shrp(model.train(), data, name, A.layers // 2 if name == "half" else A.layers - 1, seed)
        save(f"shrp-{'-'.join(A.runs)}{A.tag}-s{seed}.json", report)


if __name__ == "__main__":
    main()
