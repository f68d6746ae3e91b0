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
import decoder  # noqa: E402
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
        good &= 0.7 < rates[0] / rates[1] < 1.4
    print(f"{'random selection':44s} {'ok' if good else 'FAILED'}")
    return good


def main():
    small = dict(l=4, stride=2, block=4, n=3, window=5)
    results = [planted_facts(), random_selection()]
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
                        ("routing_transformer, one cluster", dict(clusters=1, window=3))):
        x = made(routing_transformer, routing_transformer.RoutingTransformer, **given)
        results += [agrees(name, x, routing_row), gradient(name, x)]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
