#!/usr/bin/env python3
"""What growth_bench measured, as a table with the exponent of every policy's time and as a plot.

Usage: growth.py RESULT.json [PLOT.svg]
Example: build/release/tests/bench/growth_bench --benchmark_repetitions=7 --benchmark_out=growth.json &&
         tests/bench/growth.py growth.json growth.svg

The exponent e is that of time ~ keys^e, by least squares over the lengths of four times the shortest and more, where
what a call costs whatever the length is no longer most of it."""
import collections
import json
import math
import sys

COLOURS = ["#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b"]


def read(path):
    """{kind: {policy: {keys: counters}}} of medians, or of single runs."""
    kinds = collections.defaultdict(lambda: collections.defaultdict(dict))
    with open(path, encoding="utf-8") as file:
        runs = json.load(file)["benchmarks"]
    repeated = any(r.get("aggregate_name") == "median" for r in runs)
    for run in runs:
        if "error_message" in run or (repeated and run.get("aggregate_name") != "median"):
            continue
        kind, rest = run["run_name"].split("/", 1)
        policy, keys = rest.rsplit("/keys:", 1)
        kinds[kind][policy][int(keys.split("/")[0])] = run
    if not kinds:
        sys.exit(f"{path} holds no run of growth_bench")
    return kinds


def exponent(points):
    shortest = min(points)
    xy = [(math.log(k), math.log(t)) for k, t in points.items() if k >= 4 * shortest]
    if len(xy) < 2:
        return float("nan")
    mx = sum(x for x, _ in xy) / len(xy)
    my = sum(y for _, y in xy) / len(xy)
    return sum((x - mx) * (y - my) for x, y in xy) / sum((x - mx) ** 2 for x, _ in xy)


def length(keys):
    return f"{keys >> 20} M" if keys >= 1 << 20 else f"{keys >> 10} k"


def times(policies):
    return {p: {k: r["real_time"] for k, r in sorted(runs.items())} for p, runs in policies.items()}


def table(kind, policies):
    by = times(policies)
    lengths = sorted({k for points in by.values() for k in points})
    most = lengths[-1]
    print(f"\n| {kind}: ms (planning) | " + " | ".join(length(k) for k in lengths) +
          f" | exponent | against dense, mass at {length(most)} | state, plan (MiB) |")
    print("|---" * (len(lengths) + 4) + "|")
    for policy, points in by.items():
        cells = []
        for k in lengths:
            run = policies[policy].get(k)
            cells.append(f"{run['real_time']:.3g} ({run['plan_ms']:.2g})" if run else "-")
        last = policies[policy].get(most)
        against, memory = "-", "-"
        if last:
            dense = by.get("dense", {}).get(most)
            against = f"{dense / last['real_time']:.1f}x, " if dense else ""
            against += f"{last['mass']:.3f}"
            memory = f"{last['state_MiB']:.3g}, {last['plan_MiB']:.2g}"
        print(f"| `{policy}` | " + " | ".join(cells) + f" | {exponent(points):.2f} | {against} | {memory} |")


def plot(kinds, path):
    """Two panels of lines, both axes logarithmic."""
    width, height, left, top, gap = 420, 320, 60, 30, 70
    parts = []
    for at, (kind, policies) in enumerate(sorted(kinds.items())):
        by = times(policies)
        ks = [k for points in by.values() for k in points]
        ts = [t for points in by.values() for t in points.values()]
        x0, x1 = math.log2(min(ks)), math.log2(max(ks))
        y0, y1 = math.floor(math.log10(min(ts))), math.ceil(math.log10(max(ts)))
        ox = left + at * (width + gap)

        def place(k, t):
            return (ox + (math.log2(k) - x0) / max(x1 - x0, 1) * width,
                    top + height - (math.log10(t) - y0) / max(y1 - y0, 1) * height)

        parts.append(f'<text x="{ox}" y="{top - 10}" font-weight="bold">{kind}: ms a run over keys</text>')
        for decade in range(y0, y1 + 1):
            y = place(min(ks), 10.0 ** decade)[1]
            parts.append(f'<path d="M{ox} {y:.1f}h{width}" stroke="#ddd"/>'
                         f'<text x="{ox - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0 ** decade:g}</text>')
        for k in sorted(set(ks)):
            parts.append(f'<text x="{place(k, 1)[0]:.1f}" y="{top + height + 16}" text-anchor="middle">{length(k)}</text>')
        for i, (policy, points) in enumerate(by.items()):
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(k, t) for k, t in points.items()))
            parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="2"/>')
    for i, policy in enumerate(times(next(iter(sorted(kinds.items())))[1])):
        y = top + height + 40 + 16 * i
        parts.append(f'<path d="M{left} {y - 4}h24" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="2"/>'
                     f'<text x="{left + 30}" y="{y}">{policy}</text>')
    full = left + len(kinds) * (width + gap), top + height + 50 + 16 * len(next(iter(kinds.values())))
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{full[0]}" height="{full[1]}" '
                   f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
                   + "".join(parts) + "</svg>\n")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    measured = read(sys.argv[1])
    for name, rows in sorted(measured.items()):
        table(name, rows)
    if len(sys.argv) == 3:
        plot(measured, sys.argv[2])
