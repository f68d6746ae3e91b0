#!/usr/bin/env python3
"""Makes pool_a.csv.gz: how twelve models answered 4,540 queries, as `sluice replay` reads it.

Facts only (ids, tasks, correctness, costs, latencies), no query texts. Intents and features come from
`sluice intent crossfit`: each query classified by a model that has not seen it.

  sluice intent crossfit --in pool_a/queries.jsonl.gz --out intents.csv
  build_pool_a.py --data pool_a --intents intents.csv --out examples/agents/pool_a.csv.gz

A cost that the source lacks is the model's mean for the task, or for all tasks where it has none (the two Llama models on
tool use). A latency is measured where the source has one, else a + b * output tokens of the model's fit, else empty.
"""
import argparse
import collections
import csv
import gzip
import json
import os

P = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
P.add_argument("--data", required=True)
P.add_argument("--intents", required=True)
P.add_argument("--out", required=True)
A = P.parse_args()


def rows(name):
    with gzip.open(os.path.join(A.data, name), "rt", newline="") as f:
        yield from csv.DictReader(f)


task = {}
with gzip.open(os.path.join(A.data, "queries.jsonl.gz"), "rt") as f:
    for line in f:
        q = json.loads(line)
        task[q["qid"]] = q["task"]
fit = {r["model"]: (float(r["a_s"]), float(r["b_s_per_out_tok"])) for r in rows("latency_fit.csv.gz") if r["a_s"]}
outcomes = collections.defaultdict(dict)
models = []
known = collections.defaultdict(list)
for r in rows("outcomes.csv.gz"):
    if r["model"] not in models:
        models.append(r["model"])
    outcomes[r["qid"]][r["model"]] = r
    if r["cost_usd"]:
        known[r["model"], task[r["qid"]]].append(float(r["cost_usd"]))
        known[r["model"], None].append(float(r["cost_usd"]))
mean = {k: sum(v) / len(v) for k, v in known.items()}
with open(A.intents, newline="") as f:
    intents = list(csv.reader(f))
extra = {r[0]: r[1:] for r in intents[1:]}
with open(A.out, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed:
    header = ["id", "task", *intents[0][1:]] + [f"{c}:{m}" for m in models for c in ("quality", "cost_usd", "latency_s")]
    packed.write((",".join(header) + "\n").encode())
    for qid, t in task.items():
        cells = [qid.replace(",", "_"), t, *extra[qid]]
        for m in models:
            r = outcomes[qid][m]
            cost = float(r["cost_usd"]) if r["cost_usd"] else mean.get((m, t), mean[m, None])
            latency = r["latency_s"]
            if not latency and m in fit and r["out_tok"]:
                latency = fit[m][0] + fit[m][1] * float(r["out_tok"])
            cells += [r["correct"], f"{cost:.7f}", f"{float(latency):.3f}" if latency else ""]
        packed.write((",".join(cells) + "\n").encode())
