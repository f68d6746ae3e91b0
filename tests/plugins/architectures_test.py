#!/usr/bin/env python3
"""Random models of eleven architectures give the same logits in an unmodified llama.cpp with and without the backend, which
takes every attention operation of theirs: prompts in chunks, steps, two sequences with caches of their own and in one,
steps after a shift of the context. Usage: architectures_test.py OUT LLAMA_LOGITS BACKEND LIBS, or without LLAMA_LOGITS: 77."""
import array
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tiny_models  # noqa: E402

if len(sys.argv) < 5:
    print("skipped: no llama.cpp in this build (npm and git fetch it, or -DSLUICE_GGML_DIR= names one)")
    sys.exit(77)
out, logits, backend, libs = sys.argv[1:]
os.makedirs(out, exist_ok=True)

# The most that logits may differ, |a - b|^2 / |a|^2: of a series' tokens together, and of one token, since an expert on the
# edge may be another. llama.cpp rounds queries to the cache's type and sums values in f16, the backend works in f32 (and is
# the nearer one of the two to the f16 logits with a q8_0 cache). Seen: 4e-7 and 4e-6 (f16), 5e-5 and 2e-3 (q8_0).
TOLERANCE = {"f16": (2e-6, 2e-5), "q8_0": (3e-4, 6e-3)}
UNDONE = ("mixtral",)  # interleaved pairs of the whole width, unscaled; of the llama here it is scaled
QUANTISED = ("llama", "qwen3", "gemma2", "gpt-oss", "deepseek2")
counters, config = (os.path.join(out, f) for f in ("counters.json", "sluice.conf"))


def run(model, cache, settings=None):
    """Logits, what the program said of them, and the backend's counters; without settings llama.cpp alone."""
    environment = {k: v for k, v in os.environ.items() if k not in ("GGML_BACKEND_PATH", "SLUICE_GGML_CONFIG")}
    if os.path.exists(counters):
        os.remove(counters)
    if settings is not None:
        with open(config, "w") as f:
            f.write(f"{settings}\ncounters = {counters}\n")
        environment.update(GGML_BACKEND_PATH=backend, SLUICE_GGML_CONFIG=config)
    path = os.path.join(out, "logits.f32")
    r = subprocess.run([logits, model, libs, path, cache], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert r.returncode == 0, (model, cache, settings, r.returncode, r.stdout + r.stderr)
    values = array.array("f")
    with open(path, "rb") as f:
        values.frombytes(f.read())
    return values, json.loads(r.stdout), json.load(open(counters)) if os.path.exists(counters) else None


def errors(a, b, width, first, rows):
    """|a - b|^2 / |a|^2 of a series of tokens: the mean and the largest. A NaN counts as infinite."""
    each = []
    for at in range(first * width, (first + rows) * width, width):
        x, y = a[at:at + width], b[at:at + width]
        error = sum((p - q) ** 2 for p, q in zip(x, y)) / sum(p * p for p in x)
        each.append(error if error == error else float("inf"))
    return sum(each) / rows, max(each)


failures = []
for name in tiny_models.MODELS:
    model = os.path.join(out, name + ".gguf")
    tiny_models.write(name, model)
    for cache in TOLERANCE:
        if cache != "f16" and name not in QUANTISED:
            continue
        plain, said, _ = run(model, cache)
        routed, also, counted = run(model, cache, "attention = dense\ndecode_min_keys = 0\nearly_steps = 1")
        assert said == also, (said, also)
        assert len(plain) == len(routed) == said["vocabulary"] * sum(said["series"].values())
        taken = sum(layer["calls"] for layer in counted["layers"])
        line, first = f"{name:10} {cache:5} {taken} of {said['operations']} operations;", 0
        for series, rows in said["series"].items():
            mean, most = errors(plain, routed, said["vocabulary"], first, rows)
            first += rows
            line += f" {series} {mean:.0e} {most:.0e}"
            if mean > TOLERANCE[cache][0] or most > TOLERANCE[cache][1]:
                failures.append(f"{name}, {cache}, {series}: {mean:.1e} and {most:.1e}, allowed {TOLERANCE[cache]}")
        print(line, flush=True)
        if taken != said["operations"] or counted["declined"]:
            failures.append(f"{name}, {cache}: {taken} of {said['operations']} operations taken, declined {counted['declined']}")
    # A router that reads what was before RoPE and keeps everything: where the rotation can be undone it plans, where not it is
    # dense and counted, and the logits are those of llama.cpp either way.
    plain, said, _ = run(model, "f16")
    routed, _, counted = run(model, "f16", "attention = seer_attention:gate=identity,block=16,tau=-1\ndecode_min_keys = 0\nearly_steps = 1")
    mean, most = errors(plain, routed, said["vocabulary"], 0, sum(said["series"].values()))
    planned, away = (sum(layer[what] for layer in counted["layers"]) for what in ("routed", "no_rope"))
    print(f"{name:10} before RoPE: {planned} operations planned, {away} not; {mean:.0e} {most:.0e}", flush=True)
    if mean > TOLERANCE["f16"][0] or most > TOLERANCE["f16"][1] or (planned > 0) != (name in UNDONE) or (away > 0) == (name in UNDONE):
        failures.append(f"{name}: before RoPE {planned} planned, {away} not, {mean:.1e} and {most:.1e}")
    # As it comes: single steps over so few keys stay with llama.cpp, everything else is taken.
    _, said, counted = run(model, "f16", "attention = dense")
    taken = sum(layer["calls"] for layer in counted["layers"])
    print(f"{name:10} by default {taken} of {said['operations']} operations; left to llama.cpp: {', '.join(counted['declined'])}", flush=True)
    if set(counted["declined"]) != {"a step before any prompt", "a step over few keys"} or not 0 < taken < said["operations"]:
        failures.append(f"{name}: {taken} of {said['operations']}, {counted['declined']}")
    os.remove(model)
assert not failures, "\n".join(failures)
print(f"{len(tiny_models.MODELS)} architectures give the logits that llama.cpp gives alone")
