"""Queries of real users and benchmarks with the task family each belongs to: what an intent model learns.

Lines of JSON (qid, task, subtask, text). Which split a query is in follows from its id alone, so that whoever tests a
trained model (runtime/lab/evaluate/shrp.cc) sees none of its training data."""
import gzip
import json

TEST_PERCENT = 15


def fnv1a(text):
    h = 0xcbf29ce484222325
    for b in text.encode():
        h = ((h ^ b) * 0x100000001b3) & 0xffffffffffffffff
    return h


def family(q):
    return f"{q['task']}/{q['subtask']}" if q["task"] == "mmlu_pro" else q["task"]


def load(paths):
    """-> (families sorted by name, {"train" | "test": [(text, family index)]})."""
    rows = []
    for path in paths:
        with gzip.open(path, "rt") as f:
            rows += [json.loads(line) for line in f]
    names = sorted({family(q) for q in rows})
    out = {"train": [], "test": []}
    for q in rows:
        out["test" if fnv1a(q["qid"]) % 100 < TEST_PERCENT else "train"].append((q["text"], names.index(family(q))))
    return names, out
