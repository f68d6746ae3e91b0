#!/usr/bin/env python3
"""An unmodified llama.cpp with the backend: the same answers when it routes densely, fewer pairs when it does not, and
its own attention when the configuration is wrong; and the same likelihoods as this host, of a Mixture of Experts and of
pruned files. Usage: llama_test.py SLUICE MODELS OUT LLAMA_COMPARE, or without LLAMA_COMPARE: 77."""
import json
import os
import re
import subprocess
import sys

if len(sys.argv) < 5:
    print("skipped: no llama.cpp in this build (npm and git fetch it, or -DSLUICE_GGML_DIR= names one)")
    sys.exit(77)
sluice, models, out, compare = sys.argv[1:]
os.makedirs(out, exist_ok=True)


def run(attention, *more):
    counters = os.path.join(out, "counters.json")
    if os.path.exists(counters):
        os.remove(counters)
    r = subprocess.run([compare, "--context", "1536", "--documents", "1", "--repeats", "0", "--facts", "8", "--steps", "4", "--attention", attention, "--counters", counters, *more],
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    ppl, facts = (float(x) for x in re.search(r"perplexity ([+-][\d.]+) %, facts ([+-][\d.]+) points", r.stdout).groups())
    return ppl, facts, json.load(open(counters))["layers"] if os.path.exists(counters) else [], r.stderr


ppl, facts, layers, _ = run("dense")
assert abs(ppl) < 0.3 and facts == 0, (ppl, facts)
assert [c["layer"] for c in layers] == list(range(6)) and all(c["density"] == 1 for c in layers), layers
assert all(c["calls"] == 3 for c in layers), layers  # three passes of 512; dense steps stay with llama.cpp
ppl, facts, layers, _ = run("dense", "--decode-min-keys", "0")
assert abs(ppl) < 0.3 and all(c["calls"] == 3 + 4 for c in layers), (ppl, layers)
ppl, facts, layers, _ = run("per_layer(3*mean_pool:k=6 | dense)")
assert abs(ppl) < 5, ppl
assert all(c["density"] < 0.8 for c in layers[:3]) and all(c["density"] == 1 for c in layers[3:]), layers
ppl, facts, layers, _ = run("dense", "--auto-flash")
assert layers and abs(ppl) < 0.3, (ppl, layers)  # llama.cpp's probe did not turn flash attention off
ppl, facts, layers, said = run("no_such_router")
assert ppl == 0 and facts == 0 and not layers and "no method 'no_such_router'" in said and "stays with the CPU backend" in said, said


def agree(model, tokens):
    """Perplexity of the same windows, by llama.cpp and by this host."""
    windows, length = 4, 512
    r = subprocess.run([compare, "--model", model, "--tokens", tokens, "--context", str(length), "--documents", str(windows), "--facts", "0",
                        "--steps", "0", "--repeats", "0"], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    theirs = float(re.search(r"llama.cpp +([\d.]+)", r.stdout).group(1))
    r = subprocess.run([sluice, "perplexity", "--model", model, "--tokens", tokens, "--count", str(length), "--windows", str(windows)],
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    ours = float(re.search(r"perplexity ([\d.]+)", r.stdout).group(1))
    assert abs(ours / theirs - 1) < 0.005, (model, ours, theirs)
    return ours


mini, moe = (os.path.join(models, f"sluice-{m}") for m in ("mini", "mini-moe"))
print("mixture of experts: perplexity", agree(moe + "-q8_0.gguf", moe + "-eval.u16"))
for name, method, sparsity in ((mini, "wanda", "0.5"), (mini, "layers", "0.2"), (mini, "neurons", "0.25"), (mini, "heads", "0.5"), (moe, "experts", "0.25")):
    pruned = os.path.join(out, f"{method}.gguf")
    r = subprocess.run([sluice, "prune", name + "-q8_0.gguf", pruned, "--method", method, "--sparsity", sparsity, "--calibrate", name + "-eval.u16",
                        "--skip", "8192", "--count", "2048", "--window", "512", "--held-out-count", "512"], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    print(f"pruned by {method}: perplexity", agree(pruned, name + "-eval.u16"))
    os.remove(pruned)
print("llama.cpp: dense agrees, blocks skip, auto keeps flash attention, a wrong configuration changes nothing")
