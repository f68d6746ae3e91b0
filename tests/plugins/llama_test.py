#!/usr/bin/env python3
"""An unmodified llama.cpp with the backend: the same answers when it routes densely, fewer pairs when it does not, and
its own attention when the configuration is wrong; and the same likelihoods as this host, of a Mixture of Experts, of
random SmallThinkers and of pruned files; speed alone, of random models too. Usage: llama_test.py SLUICE MODELS OUT LLAMA_COMPARE, or without LLAMA_COMPARE: 77."""
import array
import json
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tiny_models  # noqa: E402

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
    made = json.load(open(counters)) if os.path.exists(counters) else {"layers": []}
    if "--threads" not in more and made["layers"]:  # none of the backend's own beside llama.cpp's
        assert made["parallel"]["host's threads"] > 0 and made["parallel"]["own threads"] == 0, made["parallel"]
    return ppl, facts, made["layers"], r.stderr


ppl, facts, layers, _ = run("dense")
assert abs(ppl) < 0.3 and facts == 0, (ppl, facts)
assert [c["layer"] for c in layers] == list(range(6)) and all(c["density"] == 1 for c in layers), layers
assert all(c["calls"] == 3 for c in layers), layers  # three passes of 512; dense steps stay with llama.cpp
ppl, facts, layers, _ = run("dense", "--decode-min-keys", "0")
assert abs(ppl) < 0.3 and all(c["calls"] == 3 + 4 for c in layers), (ppl, layers)
for more in (("--poll", "-1"), ("--poll", "0"), ("--threads", "1"), ("--threads", "3")):  # hosts without a pool, whose threads sleep, and others
    again = run("dense", "--decode-min-keys", "0", *more)
    assert abs(again[0]) < 0.3 and [c["calls"] for c in again[2]] == [c["calls"] for c in layers], (more, again)
ppl, facts, layers, _ = run("per_layer(3*mean_pool:k=6 | dense)")
assert abs(ppl) < 5, ppl
assert all(c["density"] < 0.8 for c in layers[:3]) and all(c["density"] == 1 for c in layers[3:]), layers
# Learned gates read queries and keys from before RoPE: the rotation is undone.
gates = f"seer_attention:block=32,tau=0.004,weights={os.path.join(models, 'seer_attention-s1.gguf')}"
ppl, facts, layers, _ = run(gates)
assert abs(ppl) < 3, ppl
assert all(c["routed"] == c["calls"] == 3 and c["no_rope"] == 0 and c["density"] < 0.95 for c in layers), layers
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
for name, method, sparsity in ((mini, "wanda", "0.5"), (mini, "layers", "0.2"), (mini, "neurons", "0.25"), (mini, "heads", "0.5"), (mini, "query_heads", "0.34"), (moe, "experts", "0.25")):
    pruned = os.path.join(out, f"{method}.gguf")
    r = subprocess.run([sluice, "prune", name + "-q8_0.gguf", pruned, "--method", method, "--sparsity", sparsity, "--calibrate", name + "-eval.u16",
                        "--skip", "8192", "--count", "2048", "--window", "512", "--held-out-count", "512"], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    print(f"pruned by {method}: perplexity", agree(pruned, name + "-eval.u16"))
    os.remove(pruned)

# Random experts chosen before attention, with layers that slide and do not rotate in turn, and without.
ids = os.path.join(out, "random.u16")
with open(ids, "wb") as f:
    f.write(array.array("H", [(i * 2654435761 >> 7) % 256 for i in range(4 * 512)]).tobytes())
for window in (4096, 0):
    early = os.path.join(out, "early.gguf")
    tiny_models.smallthinker(1, window, tiny_models.BYTES).write(early)
    print(f"smallthinker, window {window}: perplexity", agree(early, ids))
    os.remove(early)


def speed(*options):
    """What the command says of speed alone; its temporary files go to a folder that stays empty."""
    folder = os.path.join(out, "temporary")
    os.makedirs(folder, exist_ok=True)
    r = subprocess.run([compare, *options, *(() if "--pairs" in options else ("--pairs", "1")), "--steps", "2", "--threads", "1"], env={**os.environ, "TMPDIR": folder}, capture_output=True, text=True)
    assert not os.listdir(folder), os.listdir(folder)
    return r.returncode, r.stdout, r.stderr


for kind in ("random:tiny-q8_0", "random:tiny-q4_0"):
    counters = os.path.join(out, "counters.json")
    code, said, err = speed("--model", kind, "--contexts", "600,64,128,64", "--attention", "mean_pool:k=1", "--decode-min-keys", "0", "--counters", counters)
    assert code == 0, said + err
    rows = [line.split() for line in said.splitlines() if re.match(r" +\d+ ", line)]
    assert [r[0] for r in rows] == ["64", "128", "600"], said  # in order, each once
    assert all(float(ms) > 0 for r in rows for ms in (r[1], r[2], r[6], r[7])), said
    assert all(float(r[1]) <= float(after[1]) for r, after in zip(rows, rows[1:])), said  # a prompt that grows
    layers = json.load(open(counters))["layers"]
    # Prompts of 64, 128 and 600 in passes of up to 512, two steps at each, and what warms up: a pass and a step.
    assert [c["calls"] for c in layers] == [3 + 3 * 2 + 2] * 2 and all(c["routed"] == c["calls"] and c["density"] < 0.9 for c in layers), layers
    assert kind.split("-")[1] in said and "2 layers of width 64" in said and "of 600 tokens" in err, said + err
code, said, err = speed("--model", "random:tiny-q8_0", "--contexts", "600,64", "--steps-only", "--pairs", "3", "--attention", "mean_pool:k=1",
                        "--decode-attention", "dense", "--decode-min-keys", "0", "--counters", counters)
rows = [line.split() for line in said.splitlines() if re.match(r" +\d+ ", line)]
assert code == 0 and [len(r) for r in rows] == [6, 6] and "mean_pool:k=1 of prompts, dense of steps" in said, said + err
# One prompt of 64 and 536 more in passes of up to 512, three times two steps at each, and what warms up.
assert [c["calls"] for c in json.load(open(counters))["layers"]] == [3 + 3 * 2 * 2 + 2] * 2, open(counters).read()
code, said, err = speed("--contexts", "64")
assert code == 0 and "sluice-mini" in said, said + err  # a model of one's own
code, said, err = speed("--model", "random:tiny-q8_0", "--overhead")
assert code == 0 and len(re.findall(r"^(wall|CPU) .* -?[\d.]+ us \[-?[\d.]+, -?[\d.]+\]$", said, re.M)) == 2, said + err
for options, why in ((("--model", "random:2B-q8_0"), "no random model 'random:2B-q8_0'; allowed: random:1B-q8_0, random:1B-q4_0, random:4B-q8_0"),
                     (("--model", "random:tiny-q8_0", "--facts", "3"), "random weights know no facts"),
                     (("--model", "random:tiny-q8_0", "--attention", "no_such_router"), "no method 'no_such_router'"),
                     (("--model", "random:tiny-q8_0", "--backend", "/nowhere.so"), "/nowhere.so: llama.cpp cannot load this backend"),
                     (("--model", "random:tiny-q8_0", "--pairs", "0"), "at least 1 of both"),
                     (("--model", "random:tiny-q8_0", "--overhead", "--steps-only"), "give one of them"),
                     (("--model", "/nowhere.gguf", "--contexts", "64"), "/nowhere.gguf: llama.cpp cannot load it"),
                     (("--contexts", "512,8"), "8 not in range 16 to 1048576"),
                     (("--contexts", "200000"), "holds 65536 tokens; asked for 200002")):
    code, said, err = speed(*options)
    assert code != 0 and why in said + err, (options, said, err)
print("llama.cpp: dense agrees, blocks skip, auto keeps flash attention, a wrong configuration changes nothing")
