#!/usr/bin/env python3
"""The attentions that are trained from scratch against their methods' definitions, in plain loops over doubles, and the
gradients of their losses against finite differences. Exit code 77, skipped, without PyTorch."""
import argparse
import math
import os
import sys

try:
    import torch
except ImportError as e:
    print("SKIPPED: it needs PyTorch:", e)
    sys.exit(77)

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "common")]
import gradient_test  # noqa: E402  plain forms of what older versions of PyTorch lack
import biformer  # noqa: E402
import decoder  # noqa: E402
import images  # noqa: E402
import nsa  # noqa: E402
import planted  # noqa: E402
import routing_transformer  # noqa: E402
import superlinear  # noqa: E402

WIDTH, HEADS, KV, D, T = 24, 4, 2, 6, 37
BASE = 100.0


def settings(module, **given):
    p = argparse.ArgumentParser()
    module.options(p)
    a = p.parse_args([])
    for name, value in dict(select="learned", layers=2, width=WIDTH, heads=HEADS, kv_heads=KV, ffn=16, rope_base=BASE, **given).items():
        setattr(a, name, value)
    return a


def made(module, attention, **given):
    torch.manual_seed(7)
    return gradient_test.randomised(attention(settings(module, **given)), 3)


def inputs(t=T):
    return torch.randn(2, t, WIDTH, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


def turned(x, position):
    """RoPE of interleaved pairs, of one vector."""
    out = list(x)
    for c in range(0, len(x) - 1, 2):
        angle = position * BASE ** (-c / len(x))
        out[c] = x[c] * math.cos(angle) - x[c + 1] * math.sin(angle)
        out[c + 1] = x[c] * math.sin(angle) + x[c + 1] * math.cos(angle)
    return out


def dot(x, y):
    return sum(a * b for a, b in zip(x, y))


def softmax(x):
    e = [math.exp(a - max(x)) for a in x]
    return [a / sum(e) for a in e]


def attended(q, keys, values):
    if not keys:
        return [0.0] * D
    p = softmax([dot(q, k) / math.sqrt(D) for k in keys])
    return [sum(w * v[c] for w, v in zip(p, values)) for c in range(D)]


class Sequence:
    """Of one sequence h [t, width]: per head lists of vectors before and after RoPE."""

    def __init__(self, x, h):
        def heads(f, n):
            y = (h @ f.weight.T).detach().tolist()
            return [[row[i * D:(i + 1) * D] for row in y] for i in range(n)]
        self.h, self.t = h.detach().tolist(), len(h)
        self.q_pre, self.k_pre, self.v = heads(x.q, HEADS), heads(x.k, KV), heads(x.v, KV)
        self.turn()

    def turn(self):
        self.q, self.k = ([[turned(r, i) for i, r in enumerate(head)] for head in y] for y in (self.q_pre, self.k_pre))


def linear(weight, x):
    return [dot(row, x) for row in weight.detach().tolist()]


def nsa_row(x, s, t, head):
    kv, a = head // (HEADS // KV), x
    starts = range(0, s.t - a.l + 1, a.stride)

    def mapped(rows, of):
        flat = [c for r in rows for c in r]
        return [dot(w, flat) for w in of[kv].detach().tolist()]
    place = x.position[kv].detach().tolist()
    keys = [turned(mapped([[k + p for k, p in zip(s.k_pre[kv][i + j], place[j])] for j in range(a.l)], x.key_map), i) for i in starts]
    values = [mapped(s.v[kv][i:i + a.l], x.value_map) for i in starts]
    seen = [n for n, i in enumerate(starts) if i + a.l - 1 <= t]
    compressed = attended(s.q[head][t], [keys[n] for n in seen], [values[n] for n in seen])

    own = t // a.block
    score = [0.0] * (own + 1)
    for member in range(kv * 2, kv * 2 + 2):
        p = softmax([dot(s.q[member][t], keys[n]) / math.sqrt(D) for n in seen]) if seen else []
        for j in range(own + 1):  # the paper's double sum
            for m in range(a.block // a.stride):
                for back in range(a.l // a.stride):
                    at = a.block // a.stride * j + m - back
                    score[j] += p[at] if 0 <= at < len(p) else 0.0
    forced = [j for j in range(own + 1) if j < a.init or j > own - a.local]
    rest = sorted((j for j in range(own + 1) if j not in forced), key=lambda j: -score[j])
    blocks = forced + rest[:max(0, a.n - len(forced))]
    selected = [i for i in range(t + 1) if i // a.block in blocks]
    window = range(max(0, t - a.window + 1), t + 1)
    of = lambda ids: attended(s.q[head][t], [s.k[kv][i] for i in ids], [s.v[kv][i] for i in ids])  # noqa: E731
    logits = linear(x.gate.weight[head * 3:head * 3 + 3], s.h[t])
    gates = [1 / (1 + math.exp(-g - b)) for g, b in zip(logits, x.gate_bias[head * 3:head * 3 + 3].tolist())]
    return [sum(g * o[c] for g, o in zip(gates, (compressed, of(selected), of(window)))) for c in range(D)]


def superlinear_row(x, s, t, head):
    kv = head // (HEADS // KV)
    window = math.floor((x.sw_index + 1) ** (1 / x.p)) - 1
    start = t + 1 - window
    query = turned(linear(x.search.weight[head * D:(head + 1) * D], s.h[t]), t)
    anchors, i = [], x.sw_index + 1
    while t + 1 - math.floor(i ** (1 / x.p)) >= 0:
        anchors.append(t + 1 - math.floor(i ** (1 / x.p)))
        i += 1
    anchors = sorted(anchors, key=lambda a: -dot(query, s.k[kv][a]))[:x.k_spans]
    near = list(range(max(0, start), t + 1))

    def over(first, last):
        ids = [j for j in range(0, t + 1) if j in near or first <= j <= last]
        return attended(s.q[head][t], [s.k[kv][j] for j in ids], [s.v[kv][j] for j in ids])
    if not anchors:
        return over(0, -1)
    size = (t + 1) ** x.e
    spans = [over(max(0, a - math.ceil(x.back * size)), min(a + math.ceil(x.ahead * size), t, start - 1)) for a in anchors]
    gates = softmax([dot(query, s.k[kv][a]) for a in anchors])
    return [sum(g * o[c] for g, o in zip(gates, spans)) for c in range(D)]


def normalised(x):
    mean = sum(x) / len(x)
    spread = sum((a - mean) ** 2 for a in x) / len(x)
    return [(a - mean) / math.sqrt(spread + 1e-5) for a in x]


def routing_row(x, s, t, head):
    kv = head // (HEADS // KV)
    if head < HEADS // 2:
        ids = range(max(0, t - x.window + 1), t + 1)
        return attended(s.q[head][t], [s.k[kv][i] for i in ids], [s.v[kv][i] for i in ids])
    outputs = []
    for centroid in x.centroids[head - HEADS // 2].tolist():
        members = x.members or s.t // x.centroids.shape[1]
        best = lambda rows: sorted(range(s.t), key=lambda i: -dot(rows[i], centroid))[:members]  # noqa: E731
        queries, keys = best(s.q_pre[head]), sorted(i for i in best(s.k_pre[kv]) if i <= t)
        if x.shared and len(keys) > 1:
            keys = [i for i in keys if i != t]
        if t in queries and keys:
            outputs.append(attended(s.q[head][t], [s.k[kv][i] for i in keys], [s.v[kv][i] for i in keys]))
    return [sum(o[c] for o in outputs) / max(1, len(outputs)) for c in range(D)]


def centroids_follow():
    """The mean of the tokens that each is nearest to, at the length of a token; it and the commitment loss, token by token."""
    x = made(routing_transformer, routing_transformer.RoutingTransformer, clusters=3, window=3).double().train()
    before, h = x.centroids.clone(), inputs()
    x(h)
    q, k = x.prepared(x.q(h).unflatten(-1, (-1, x.d)), x.k(h).unflatten(-1, (-1, x.d)))
    loss, tokens, want = 0.0, 0, []
    for head, centroids in enumerate(before):
        at = HEADS // 2 + head
        sums, number = [[0.0] * x.d for _ in centroids], [0] * len(centroids)
        for sequence in range(len(h)):
            for token in [*q[sequence, :, at].tolist(), *k[sequence, :, at // (HEADS // KV)].tolist()]:
                likes = [dot(token, c) for c in centroids.tolist()]
                own = likes.index(max(likes))
                number[own] += 1
                sums[own] = [a + b for a, b in zip(sums[own], token)]
                loss += sum((a - b) ** 2 for a, b in zip(token, centroids[own].tolist()))
                tokens += 1
        for c, total, n in zip(centroids.tolist(), sums, number):
            moved = [x.decay * a + (1 - x.decay) * b / n for a, b in zip(c, total)]
            mean = sum(moved) / x.d
            spread = (sum((m - mean) ** 2 for m in moved) / x.d) ** 0.5
            want.append([(m - mean) / spread for m in moved])
    good = abs(x.loss().item() - x.commitment * loss / tokens / x.d) < 1e-9
    x.after_step()
    good &= torch.allclose(x.centroids.flatten(0, 1), torch.tensor(want, dtype=torch.float64), atol=1e-4)
    print(f"{'centroids follow what is nearest':44s} {'ok' if good else 'FAILED'}")
    return good


def biformer_made(cls=biformer.BiLevelAttention, **given):
    a = biformer.parser().parse_args(["--out", "-", "--device", "cpu"])
    for name, value in dict(dict(width=8, heads=2, regions=3, k=2, layers=2, ffn=12, canvas=12), **given).items():
        setattr(a, name, value)
    torch.manual_seed(7)
    return gradient_test.randomised(cls(a), 3)


def grid(height, width):
    return torch.randn(2, height, width, 8, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


def biformer_rows(x, h, k_of_regions):
    """What attention makes of an image h [height][width][c], token by token, before the output projection."""
    height, width, d = len(h), len(h[0]), 8 // x.heads
    tall, wide = math.ceil(height / x.regions), math.ceil(width / x.regions)
    cells = [(r, c) for r in range(height) for c in range(width)]
    q, k, v = ({(r, c): linear(f.weight, h[r][c]) for r, c in cells} for f in (x.q, x.key, x.v))
    region = {(r, c): r // tall * x.regions + c // wide for r, c in cells}
    members = [[at for at in cells if region[at] == i] for i in range(x.regions ** 2)]

    def mean(of, i):
        count = len(members[i]) if x.mean == "tokens" else tall * wide
        return [sum(of[at][c] for at in members[i]) / count for c in range(8)]
    full_regions = [i for i in range(x.regions ** 2) if members[i]]
    out, conv = {}, x.conv.conv if x.conv is not None else None
    for at in cells:
        affinity = {i: dot(mean(q, region[at]), mean(k, i)) for i in full_regions}
        best = sorted(full_regions, key=lambda i: -affinity[i])[:k_of_regions]
        keys, o = [s for i in best for s in members[i]], []
        for n in range(x.heads):
            part = slice(n * d, n * d + d)
            p = softmax([dot(q[at][part], k[s][part]) * x.scale for s in keys])
            o += [sum(w * v[s][c] for w, s in zip(p, keys)) for c in range(8)[part]]
        if conv is not None:
            half = conv.weight.shape[-1] // 2
            for c in range(8):
                o[c] += conv.bias[c].item()
                for i in range(-half, half + 1):
                    for j in range(-half, half + 1):
                        if (at[0] + i, at[1] + j) in region:
                            o[c] += conv.weight[c, 0, half + i, half + j].item() * v[at[0] + i, at[1] + j][c]
        out[at] = o
    return out


def biformer_agrees(name, x, height, width, k_of_regions=None):
    h, worst = grid(height, width), 0.0
    with torch.no_grad():
        got = x.attend(x.q(h), x.key(h), x.v(h))
    for b in range(2):
        for (r, c), want in biformer_rows(x, h[b].tolist(), k_of_regions or x.k).items():
            worst = max(worst, max(abs(w - g) for w, g in zip(want, got[b, r, c].tolist())))
    good = worst < 1e-9
    print(f"{name:44s} {'ok' if good else 'FAILED'}: off by {worst:.1e} at most")
    return good


def biformer_checks():
    for name, size, given in (("biformer", (6, 6), {}), ("biformer, regions that do not divide", (5, 7), dict(k=4)),
                              ("biformer, means of cells", (5, 7), dict(k=4, mean="cells", scale="head")),
                              ("biformer, regions without a token", (4, 4), dict(k=2)),
                              ("biformer, no convolution", (6, 9), dict(conv=0, heads=4))):
        x = biformer_made(**given)
        yield biformer_agrees(name, x, *size)
        yield gradient_test.check(name + ", gradient", lambda: x(grid(*size)).pow(2).mean(), list(x.parameters()))
    yield biformer_agrees("biformer, all regions", biformer_made(k=9), 6, 6)
    yield biformer_agrees("biformer, dense", biformer_made(select="dense"), 6, 6, k_of_regions=9)
    there = biformer_made()
    x = grid(5, 7)
    yield bool((there.by_row(there.by_region(x), 5, 7) == x).all())

    model = biformer_made(biformer.VisionTransformer, patch=2)
    canvas = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    yield gradient_test.check("biformer, the model's loss",
                              lambda: torch.nn.functional.cross_entropy(model(canvas), torch.tensor([1, 7, 3])), list(model.parameters()))

    # Random regions: as many, and others at every call; the measured rate is what was read.
    good, rates = True, []
    for select in ("routed", "random", "local", "dense"):
        x = biformer_made(select=select).eval()
        x.measure, x.noise = True, torch.Generator().manual_seed(1)
        with torch.no_grad():
            outputs = [x(grid(6, 6)) for _ in range(2)]
        good &= torch.equal(*outputs) == (select != "random") and 0 < x.mass <= 1 + 1e-9
        rates.append(x.pairs)
    good &= rates == [36 * 8] * 3 + [36 * 36]
    print(f"{'biformer, other selections':44s} {'ok' if good else 'FAILED'}")
    yield good


def image_checks():
    """Images stand whole on their canvases, mirrored or not, and fragments are no larger than they are."""
    pixels = 0.5 + torch.rand(6, 28, 28, generator=torch.Generator().manual_seed(5)) / 2
    draw, index = torch.Generator().manual_seed(6), torch.tensor([4, 2, 5])
    good = torch.equal(images.canvases(pixels, index, 28, 0, draw, False), pixels[index])
    for train in (True, False):
        canvas = images.canvases(pixels, index, 40, 0, draw, train)
        for b, i in enumerate(index):
            rows, columns = (canvas[b] > 0).any(1).nonzero()[:, 0], (canvas[b] > 0).any(0).nonzero()[:, 0]
            crop = canvas[b, rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
            good &= any(torch.equal(crop, y) for y in ((pixels[i], pixels[i].flip(-1)) if train else (pixels[i],)))
    more = (images.canvases(pixels, index, 40, 2, draw, False) > 0).sum((1, 2))
    good &= bool((more <= 28 * 28 + 2 * 64).all() and (more > 28 * 28).any())
    print(f"{'images, canvases':44s} {'ok' if good else 'FAILED'}")
    return good


def agrees(name, x, row, t=T):
    h, worst = inputs(t), 0.0
    caught = {}
    x.out.forward = lambda o: caught.update(o=o) or o
    with torch.no_grad():
        x(h)
    del x.out.forward
    got = caught["o"].unflatten(-1, (HEADS, D))
    for b in range(2):
        s = Sequence(x, h[b])
        if isinstance(x, routing_transformer.RoutingTransformer):
            s.q_pre, s.k_pre = ([[normalised(r) for r in head] for head in y] for y in (s.q_pre, s.k_pre))
            if x.shared:
                s.q_pre[HEADS // 2:] = [s.k_pre[i // (HEADS // KV)] for i in range(HEADS // 2, HEADS)]
            s.turn()
        for i in range(t):
            for head in range(HEADS):
                want = row(x, s, i, head)
                worst = max(worst, max(abs(w - g) for w, g in zip(want, got[b, i, head].tolist())))
    good = worst < 1e-9
    print(f"{name:44s} {'ok' if good else 'FAILED'}: off by {worst:.1e} at most")
    return good


def gradient(name, x, t=T):
    x.train()

    def loss():
        return x(inputs(t)).pow(2).mean() + x.loss()
    return gradient_test.check(name + ", gradient", loss, list(x.parameters()))


def planted_facts():
    """Every question's name stands earlier, followed by what is asked for, and once only."""
    good = True
    for length in (64, 128, 512):
        ids, asked = planted.batch(5, length, torch.Generator().manual_seed(2))
        body = length - 3 * len(asked)
        for row in ids.tolist():
            for at in asked.tolist():
                before = [i for i in range(body) if row[i] == row[at]]
                good &= row[at - 1] == planted.ASK and len(before) == 1 and row[before[0] + 1] == row[at + 1]
                good &= planted.NAMES < row[at + 1] <= planted.NAMES + planted.VALUES
    print(f"{'planted facts':44s} {'ok' if good else 'FAILED'}")
    return good


def random_selection():
    """At the rate of the learned one, and another at every call."""
    good = True
    for module, attention, given in ((nsa, nsa.Nsa, dict(l=4, stride=2, block=4, n=3, window=5)),
                                     (superlinear, superlinear.Superlinear, dict(sw_index=1, k=2)),
                                     (routing_transformer, routing_transformer.RoutingTransformer, dict(clusters=4, window=3))):
        rates = []
        for select in ("learned", "random"):
            a = settings(module, **given)
            a.select = select
            torch.manual_seed(1)
            x = attention(a).double().eval()
            x.measure, x.noise = True, torch.Generator().manual_seed(1)
            outputs = [x(inputs(64)) for _ in range(2)]
            good &= torch.equal(*outputs) == (select == "learned")
            rates.append(x.pairs)
            x.exploring = True
            good &= not torch.equal(x(inputs(64)), x(inputs(64)))
        good &= 0.7 < rates[0] / rates[1] < 1.4
    print(f"{'random selection':44s} {'ok' if good else 'FAILED'}")
    return good


def main():
    small = dict(l=4, stride=2, block=4, n=3, window=5)
    results = [planted_facts(), random_selection(), centroids_follow(), image_checks(), *biformer_checks()]
    for name, given in (("nsa", small), ("nsa, blocks of two", {**small, "block": 8, "n": 2}),
                        ("nsa, two local", {**small, "n": 4, "local": 2, "init": 0}), ("nsa, no overlap", {**small, "stride": 4})):
        x = made(nsa, nsa.Nsa, **given)
        results += [agrees(name, x, nsa_row), gradient(name, x)]
    for name, given in (("superlinear", dict(sw_index=1, k=2)), ("superlinear, ahead", dict(sw_index=2, k=3, p=0.7, e=0.4, back=1, ahead=0.6)),
                        ("superlinear, one span", dict(sw_index=0, k=1)), ("superlinear, dense", dict(sw_index=9, k=2))):
        x = made(superlinear, superlinear.Superlinear, **given)
        results += [agrees(name, x, superlinear_row), gradient(name, x)]
    for name, given in (("routing_transformer", dict(clusters=4, window=3)), ("routing_transformer, large clusters", dict(clusters=3, members=20, window=3)),
                        ("routing_transformer, shared", dict(clusters=4, window=3, shared=True)),
                        ("routing_transformer, members", dict(clusters=4, window=3, follow="members", commitment=0.25)),
                        ("routing_transformer, one cluster", dict(clusters=1, window=3))):
        x = made(routing_transformer, routing_transformer.RoutingTransformer, **given)
        results += [agrees(name, x, routing_row), gradient(name, x)]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
