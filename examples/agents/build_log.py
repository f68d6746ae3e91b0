#!/usr/bin/env python3
"""Makes a table that `sluice replay` reads out of a folder of per-query outcomes.

The folder holds queries.jsonl.gz (qid, task, subtask) and outcomes.csv.gz (qid, model, correct, cost_usd or cost_usd_est), or
correctness_wide.csv.gz (qid, task, a column a model). Kept are the models that answered most of the queries, and of these the
queries that all of them answered. Costs are written only where every model has them.

  build_log.py --data zeroeval --out zeroeval.csv
  build_log.py --data mmlu_pro --task subtask --out mmlu_pro_subjects.csv
"""
import argparse
import collections
import csv
import gzip
import json
import os

P = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
P.add_argument("--data", required=True)
P.add_argument("--out", required=True)
P.add_argument("--task", choices=["task", "subtask"], default="task", help="which of a query's two names is its task")
P.add_argument("--share", type=float, default=0.99, help="of the queries that a model must have answered to be kept")
A = P.parse_args()


def lines(name):
    with gzip.open(os.path.join(A.data, name), "rt", newline="") as f:
        yield from f


def long_form():
    task = {}
    for line in lines("queries.jsonl.gz"):
        q = json.loads(line)
        task[q["qid"]] = q.get(A.task) or q["task"]
    quality, cost = collections.defaultdict(dict), collections.defaultdict(dict)
    for r in csv.DictReader(lines("outcomes.csv.gz")):
        quality[r["model"]][r["qid"]] = r["correct"]
        cost[r["model"]][r["qid"]] = r.get("cost_usd") or r.get("cost_usd_est") or ""
    return task, quality, cost


def wide_form():
    task, quality = {}, collections.defaultdict(dict)
    for r in csv.DictReader(lines("correctness_wide.csv.gz")):
        qid = r.pop("qid")
        task[qid] = r.pop("task")
        if A.task == "subtask":
            task[qid] = qid.rsplit("_", 1)[0]
        for model, correct in r.items():
            if correct:
                quality[model][qid] = correct
    return task, quality, {}


task, quality, cost = long_form() if os.path.exists(os.path.join(A.data, "queries.jsonl.gz")) else wide_form()
models = [m for m in quality if len(quality[m]) >= A.share * len(task)]
queries = [q for q in task if all(q in quality[m] for m in models)]
priced = all(cost.get(m, {}).get(q) for m in models for q in queries)
with open(A.out, "w", newline="") as f:
    out = csv.writer(f, lineterminator="\n")
    columns = ["quality", "cost_usd"] if priced else ["quality"]
    out.writerow(["id", "task"] + [f"{c}:{m}" for m in models for c in columns])
    for q in queries:
        cells = [x for m in models for x in ([quality[m][q], cost[m][q]] if priced else [quality[m][q]])]
        out.writerow([q, task[q], *cells])
print(f"{len(queries)} queries, {len(models)} models, {len({task[q] for q in queries})} tasks, {'with' if priced else 'without'} costs")
