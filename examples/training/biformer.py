#!/usr/bin/env python3
"""Trains a small vision transformer from scratch whose attention is bi-level routing (BiFormer, arXiv 2303.08810): a grid of
patches is cut into regions, mean queries and keys of regions choose each region's k best ones, and attention reads those; a
depth-wise convolution of the values is added.

Fashion-MNIST (60,000 images to train, 10,000 to test, ten kinds), as it is or at a random place of a larger canvas among
fragments of other images. Beside it, of the same size: dense attention, random regions, drawn anew at every call at the same
rate, and each region's nearest ones. No gradient goes through the choice, as published; attention's scale is that of the full
width, as published (--scale). Inferred: a grid that regions do not divide is filled up with tokens that no one sees, and
means are over real tokens (--mean). One GPU, some minutes. Example:
  apt-get download dataset-fashion-mnist; dpkg -x dataset-fashion-mnist*.deb data
  biformer.py --data data/usr/share/datasets/fashion-mnist --out out --seed 1
  biformer.py --data data/usr/share/datasets/fashion-mnist --out out --seed 1 --canvas 56 --patch 4 --clutter 8 --select random
"""
import argparse
import json
import os
import sys

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "common"))
import from_scratch  # noqa: E402
import gguf  # noqa: E402
import images  # noqa: E402
from decoder import linear  # noqa: E402
from frozen_llama import full  # noqa: E402

KINDS, SELECTIONS = 10, ("routed", "random", "local", "dense")


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True, help="folder")
    p.add_argument("--data", default=images.FOLDER, help="folder of IDX files")
    p.add_argument("--select", choices=SELECTIONS, default="routed", help="which regions are read")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--canvas", type=int, default=images.SIDE, help="pixels a side")
    p.add_argument("--patch", type=int, default=2, help="pixels a side of what makes a token")
    p.add_argument("--clutter", type=int, default=0, help="fragments of other images")
    p.add_argument("--regions", type=int, default=7, help="a side of the grid")
    p.add_argument("--k", type=int, default=4, help="regions that a region's queries read")
    p.add_argument("--mean", choices=["tokens", "cells"], default="tokens", help="of regions that the grid does not fill")
    p.add_argument("--scale", choices=["width", "head"], default="width", help="whose square root logits are divided by")
    p.add_argument("--conv", type=int, default=5, help="side of the convolution of the values; 0: none")
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--heads", type=int, default=4)
    p.add_argument("--ffn", type=int, default=192)
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--seconds", type=float, default=1e9, help="ends the training earlier, and the rate's fall with it")
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--tests", type=int, default=10000, help="test images of the report, the first ones")
    p.add_argument("--device", default="cuda")
    return p


class Depthwise(nn.Module):
    """Each channel of a grid [b, height, width, c] folded with weights of its own."""

    def __init__(self, width, side):
        super().__init__()
        self.conv = nn.Conv2d(width, width, side, padding=side // 2, groups=width)

    def forward(self, x):
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class BiLevelAttention(nn.Module):
    """`select`: which regions are read. `measure`: `pairs` is then what the last call read of an image, in (query, key)
    pairs a head, and `mass` what part of full attention's probability lies in the regions read."""

    def __init__(self, a):
        super().__init__()
        self.heads, self.regions, self.k, self.mean, self.select = a.heads, a.regions, a.k, a.mean, a.select
        self.scale = (a.width if a.scale == "width" else a.width // a.heads) ** -0.5
        self.q, self.key, self.v = (linear(a.width, a.width) for _ in range(3))
        self.out = linear(a.width, a.width, (2 * a.layers) ** -0.5)
        self.conv = Depthwise(a.width, a.conv) if a.conv > 0 else None
        self.measure, self.pairs, self.mass, self.noise = False, 0.0, 0.0, None

    def forward(self, x):
        q, k, v = self.q(x), self.key(x), self.v(x)
        return self.out(self.attend(q, k, v).to(x.dtype))

    def attend(self, q, k, v):
        o = self.plain(q, k, v) if self.select == "dense" else self.routed(q, k, v)
        return o if self.conv is None else o + self.conv(v)

    def by_region(self, x):
        """[b, height, width, c] -> [b, regions, tokens of a region, c], zeros where the grid ends."""
        s = self.regions
        height, width = (-(-n // s) for n in x.shape[1:3])
        x = F.pad(x, (0, 0, 0, s * width - x.shape[2], 0, s * height - x.shape[1]))
        return x.unflatten(2, (s, width)).unflatten(1, (s, height)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def by_row(self, x, height, width):
        """The inverse."""
        s = self.regions
        tall, wide = -(-height // s), -(-width // s)
        x = x.unflatten(1, (s, s)).unflatten(3, (tall, wide)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x[:, :height, :width]

    def chosen(self, q, k, real):
        """q, k [b, regions, tokens, c], real [regions, tokens] -> the regions that each one reads, ascending [b, regions, k]."""
        b, n = q.shape[:2]
        count = real.sum(-1).clamp(min=1) if self.mean == "tokens" else torch.full_like(real[:, 0].long(), real.shape[1])
        means = [full(x.detach()).sum(2) / count[:, None] for x in (q, k)]
        if self.select == "random":
            score = torch.rand(b, n, n, device=q.device, generator=self.noise)
        elif self.select == "local":
            at = torch.arange(n, device=q.device)
            apart = lambda i: (i[:, None] - i[None]) ** 2  # noqa: E731
            score = -(apart(at // self.regions) + apart(at % self.regions)).float().expand(b, n, n)
        else:
            score = means[0] @ means[1].transpose(1, 2)
        score = score.masked_fill(~real.any(-1), -torch.inf)
        return score.topk(self.k, -1).indices.sort(-1).values

    def head_rows(self, x):
        """[..., tokens, c] -> [..., heads, tokens, head width]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def routed(self, q, k, v):
        height, width = q.shape[1:3]
        real = self.by_region(torch.ones(1, height, width, 1, device=q.device))[0, :, :, 0] > 0
        q, k, v = (self.by_region(x) for x in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            at = self.chosen(q, k, real)
        pick = F.one_hot(at, q.shape[1]).to(q.dtype)  # a product, since the gradient of an indexed read is slow
        read = lambda x: torch.einsum("brkn,bnc->brkc", pick, x.flatten(2)).unflatten(3, x.shape[2:]).flatten(2, 3)  # noqa: E731
        keys, values = (self.head_rows(read(x)) for x in (k, v))  # [b, regions, heads, k * tokens, d]
        seen = real[at].flatten(2)[:, :, None, None]
        logits = full(self.head_rows(q) @ keys.transpose(-1, -2)) * self.scale
        o = logits.masked_fill(~seen, -1e30).softmax(-1).to(values.dtype) @ values
        if self.measure:
            self.pairs = (real.sum(-1)[None] * seen[:, :, 0, 0].sum(-1)).sum(-1).float().mean().item()
            p = self.region_mass(q, k, real)
            self.mass = (p.gather(-1, at).sum(-1) * real.sum(-1)).sum(-1).mean().item() / (height * width)
        return self.by_row(o.transpose(-2, -3).flatten(-2), height, width)

    def region_mass(self, q, k, real):
        """What part of full attention each region's queries, and all heads, give each region: [b, regions, regions]."""
        rows, keys = self.head_rows(full(q)), self.head_rows(full(k).flatten(1, 2))[:, None]
        p = (rows @ keys.transpose(-1, -2) * self.scale).masked_fill(~real.flatten(), -1e30).softmax(-1)
        p = p.unflatten(-1, real.shape).sum(-1).mean(2)  # [b, regions, tokens, regions]
        return (p * real[:, :, None]).sum(2) / real.sum(-1).clamp(min=1)[:, None]

    def plain(self, q, k, v):
        height, width = q.shape[1:3]
        q, k, v = (self.head_rows(x.flatten(1, 2)) for x in (q, k, v))
        if self.measure:
            self.pairs, self.mass = float((height * width) ** 2), 1.0
        if hasattr(F, "scaled_dot_product_attention"):
            o = F.scaled_dot_product_attention(q * (self.scale * q.shape[-1] ** 0.5), k, v)
        else:
            o = (full(q @ k.transpose(-1, -2)) * self.scale).softmax(-1).to(v.dtype) @ v
        return o.transpose(1, 2).flatten(2).unflatten(1, (height, width))


class Block(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.place, self.attention = Depthwise(a.width, 3), BiLevelAttention(a)
        self.norms = nn.ModuleList(nn.LayerNorm(a.width) for _ in range(2))
        self.up, self.down = linear(a.width, a.ffn), linear(a.ffn, a.width, (2 * a.layers) ** -0.5)

    def forward(self, x):
        x = x + self.place(x)
        x = x + self.attention(self.norms[0](x))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class VisionTransformer(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.patch, self.embed = a.patch, linear(a.patch ** 2, a.width)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.layers))
        self.norm, self.head = nn.LayerNorm(a.width), linear(a.width, KINDS)

    def forward(self, canvas):
        """[b, pixels, pixels] -> logits [b, kinds]."""
        x = canvas.unflatten(2, (-1, self.patch)).unflatten(1, (-1, self.patch)).transpose(2, 3).flatten(3)
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean((1, 2)))

    def attentions(self):
        return [b.attention for b in self.blocks]


def logits_of(model, canvas):
    with torch.autocast(canvas.device.type, torch.bfloat16, enabled=canvas.device.type == "cuda"):
        return model(canvas).float()


@torch.no_grad()
def evaluate(model, a, data, select):
    """Accuracy on the test images when regions are read as `select` says, all on the same canvases; of the pairs of full
    attention those that are read, and of its probability what lies there, means over layers."""
    pixels, labels = data["test"][0], data["test"][1][:a.tests]
    generator = torch.Generator(a.device).manual_seed(10 ** 6)
    attentions, was = model.attentions(), model.attentions()[0].select
    for x in attentions:
        x.select, x.noise = select, torch.Generator(a.device).manual_seed(10 ** 6 + a.seed)
    model.eval()
    right, pairs, mass, rounds = 0, 0.0, 0.0, 0
    for index in torch.arange(len(labels), device=a.device).split(a.batch):
        for x in attentions:
            x.measure = rounds < 4
        logits = logits_of(model, images.canvases(pixels, index, a.canvas, a.clutter, generator, False))
        right += (logits.argmax(-1) == labels[index]).sum().item()
        if rounds < 4:
            pairs += sum(x.pairs for x in attentions) / len(attentions)
            mass += sum(x.mass for x in attentions) / len(attentions)
        rounds += 1
    model.train()
    for x in attentions:
        x.select, x.measure = was, False
    tokens, counted = (a.canvas // a.patch) ** 2, min(4, rounds)
    return {"regions": select, "accuracy": right / len(labels), "images": len(labels),
            "density": round(pairs / counted / tokens ** 2, 4), "mass": round(mass / counted, 4)}


def train(model, a, data):
    pixels, labels = data["train"]

    def batch(_, generator):
        index = torch.randint(0, len(labels), (a.batch,), generator=generator, device=a.device)
        canvases = images.canvases(pixels, index, a.canvas, a.clutter, generator, True)
        return logits_of(model, canvases), labels[index], []
    return from_scratch.fit(model, a, batch, warm_up=200, weight_decay=0.05)


@torch.no_grad()
def golden(model, a, canvas, layer):
    """Of one layer and image, in single precision: queries, keys and values, rounded to F16; and of the rounded ones the
    regions that are read and the attention's output, the convolution added, before the output projection."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    seen, x = {}, model.attentions()[layer]
    hook = x.register_forward_pre_hook(lambda _, inputs: seen.update(h=inputs[0]))
    model(canvas[None])
    hook.remove()
    q, k, v = (f(seen["h"]).half().float() for f in (x.q, x.key, x.v))
    real = x.by_region(torch.ones_like(q[..., :1]))[0, :, :, 0] > 0
    regions = x.chosen(x.by_region(q.double()), x.by_region(k.double()), real)[0]
    flat = lambda y: y[0].flatten(0, 1).float().cpu().numpy()  # noqa: E731
    tensors = [(name, flat(y), gguf.TYPE_F16) for name, y in (("q", q), ("k", k), ("v", v), ("o", x.attend(q, k, v)))]
    return tensors + [("regions", regions.float().cpu().numpy(), gguf.TYPE_F32)]


@torch.no_grad()
def export(model, a, data, path):
    """Convolutions of the values of two layers, rounded to F16, and what attention makes there of test images."""
    model.eval()
    cases, tensors = ((0, 1), (0, a.layers - 1), (1, a.layers - 1)), []
    for layer in sorted({layer for _, layer in cases}):
        conv = model.attentions()[layer].conv.conv
        conv.weight.copy_(conv.weight.half().float())
        tensors += [(f"biformer.{layer}.conv", conv.weight[:, 0].flatten(1).cpu().numpy(), gguf.TYPE_F16),
                    (f"biformer.{layer}.conv_bias", conv.bias.cpu().numpy(), gguf.TYPE_F32)]
    some = torch.arange(2, device=a.device)
    canvas = images.canvases(data["test"][0], some, a.canvas, a.clutter, torch.Generator(a.device).manual_seed(77), False)
    numbers = {"biformer.heads": a.heads, "biformer.head_dim": a.width // a.heads, "biformer.conv": a.conv,
               "golden.cases": len(cases), "golden.side": a.canvas // a.patch, "golden.regions": a.regions, "golden.k": a.k,
               "golden.scale": model.attentions()[0].scale}
    for i, (image, layer) in enumerate(cases):
        numbers[f"golden.{i}.layer"] = layer
        tensors += [(f"golden.{i}.{name}", y, kind) for name, y, kind in golden(model, a, canvas[image], layer)]
    from_scratch.write_gguf(path, "biformer", a, numbers, tensors, "small vision transformer, Fashion-MNIST")


def main():
    a = parser().parse_args()
    if a.canvas % a.patch != 0 or a.width % a.heads != 0:
        raise SystemExit("patches must fill the canvas, and heads the width")
    if not 1 <= a.k <= a.regions ** 2:
        raise SystemExit(f"--k {a.k} of {a.regions ** 2} regions")
    os.makedirs(a.out, exist_ok=True)
    torch.manual_seed(a.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    data = images.load(a.data, a.device)
    model = VisionTransformer(a).to(a.device)
    stem = os.path.join(a.out, f"biformer-{a.canvas}-{a.select}-s{a.seed}")
    report = {"method": "biformer", "select": a.select, "seed": a.seed, "args": vars(a),
              "parameters": sum(x.numel() for x in model.parameters()),
              "images": {split: len(labels) for split, (_, labels) in data.items()},
              "device": torch.cuda.get_device_name() if a.device == "cuda" else a.device, **train(model, a, data),
              "tests": [evaluate(model, a, data, select) for select in (a.select, *(s for s in SELECTIONS if s != a.select))]}
    print(report["tests"], flush=True)
    with open(stem + ".json", "w") as f:
        json.dump(report, f, indent=1)
    if a.select == "routed" and a.conv > 0:
        export(model, a, data, stem + ".gguf")


if __name__ == "__main__":
    main()
