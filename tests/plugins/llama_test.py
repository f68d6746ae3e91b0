#!/usr/bin/env python3
"""An unmodified llama.cpp with the backend: the same answers when it routes densely, fewer pairs when it does not, and
its own attention when the configuration is wrong. Usage: llama_test.py LLAMA_COMPARE OUT, or without LLAMA_COMPARE: 77."""
import json
import os
import re
import subprocess
import sys

if len(sys.argv) < 3:
    print("skipped: no llama.cpp in this build (npm and git fetch it, or -DSLUICE_GGML_DIR= names one)")
    sys.exit(77)
compare, out = sys.argv[1:]
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
print("llama.cpp: dense agrees, blocks skip, auto keeps flash attention, a wrong configuration changes nothing")
