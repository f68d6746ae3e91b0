#!/usr/bin/env python3
"""Drives the commands of `sluice` that run a model: what they print, and that every number, file and name which cannot be
is an error that says what was given and what is allowed. Usage: commands_test.py SLUICE MODELS OUT_FOLDER"""
import math
import os
import re
import resource
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "plugins"))
import tiny_models  # noqa: E402

sluice, models, out = sys.argv[1:]
shutil.rmtree(out, ignore_errors=True)
os.makedirs(out)
TOKENS = os.path.join(models, "sluice-mini-eval.u16")
COMMANDS = ["demo", "perplexity", "facts", "generate", "compare", "search", "search-schedule", "evaluate", "calibrate", "classify", "prune-encoder",
            "prune",
            "serve", "keygen", "route", "feedback", "explain", "top", "experiment", "warm-up", "policy", "intent", "replay", "bench", "plugin", "list"]


def call(*args):
    # A hang is a failure: no wrong argument may take longer than to be refused.
    return subprocess.run([sluice, *args], capture_output=True, text=True, cwd=out, timeout=60)


def run(*args):
    r = call(*args)
    assert r.returncode == 0, (args, r.returncode, r.stdout, r.stderr)
    return r.stdout


refusals = 0


def last_of_each(args):
    """Without an option's earlier value, where a later one is given."""
    kept = list(args)
    for i in reversed(range(len(kept))):
        if kept[i].startswith("--") and kept[i] in kept[i + 1:]:
            del kept[i:i + 2]
    return kept


def refused(*args, says):
    global refusals
    refusals += 1
    args = last_of_each(args)
    r = call(*args)
    said = r.stdout + r.stderr
    assert r.returncode > 0, (args, r.returncode, said)  # a crash is a negative status
    for text in [says] if isinstance(says, str) else says:
        assert text in said, (args, text, said)


def file(name, content=b""):
    path = os.path.join(out, name)
    with open(path, "wb") as f:
        f.write(content)
    return path


# Every command is in the list, and its help shows how it is used.
listed = run("--help")
for command in COMMANDS:
    assert re.search(rf"^  {command} ", listed, re.M), command
    said = run(command, "--help")
    assert re.search(rf"Example:.*sluice {command}", said, re.S), (command, said[-300:])
refused("nothing-of-that-name", says="no command 'nothing-of-that-name'")

# They work.
perplexity = ["perplexity", "--tokens", TOKENS, "--count", "64"]
assert re.match(r"perplexity \d+\.\d+ over 2 windows of 64 tokens; density 1\.0000", run(*perplexity, "--windows", "2"))
assert run(*perplexity) != run(*perplexity, "--skip", "64")
run(*perplexity, "--nll", "nll.f32")
assert os.path.getsize(os.path.join(out, "nll.f32")) == 63 * 4
facts = ["facts", "--tokens", TOKENS, "--length", "512", "--facts", "2", "--prompts", "1"]
assert re.match(r"fact accuracy [01]\.\d+ \(\d+ of \d+ answer tokens\) in 1 prompts of 512 tokens", run(*facts))
DOORS = '{"statement": " {name} opens with {code}.", "question": " {name} opens with", "answer": " {code}"}'
with open(os.path.join(out, "doors.json"), "w") as f:
    f.write(DOORS)
in_other_words = run(*facts, "--facts", "doors.json")  # beside the number
assert re.match(r"fact accuracy [01]\.\d+ \(\d+ of \d+ answer tokens\) in 1 prompts of 512 tokens", in_other_words) and in_other_words != run(*facts)
ids = open(TOKENS, "rb").read()
u32 = b"".join(ids[i:i + 2] + b"\0\0" for i in range(0, 8192, 2))
npy_header = b"{'descr': '<u4', 'fortran_order': False, 'shape': (4096,), }\n"
for name, content in (("ids.u32", u32), ("ids.npy", b"\x93NUMPY\x01\x00" + len(npy_header).to_bytes(2, "little") + npy_header + u32)):
    with open(os.path.join(out, name), "wb") as f:
        f.write(content)
    assert run("perplexity", "--tokens", name, "--count", "64", "--skip", "64").split(",")[0] == run(*perplexity, "--skip", "64").split(",")[0], name
for policy in ("flux_attention", "informed_routing", "ftp"):
    assert "fact accuracy" in run(*facts, "--router", policy), policy
generate = ["generate", "--prompt", "The kernel", "--count", "4"]
assert run(*generate).startswith("The kernel")
assert run(*generate, "--temperature", "0.8", "--seed", "3") == run(*generate, "--temperature", "0.8", "--seed", "3")
assert "math" in run("classify", "--text", "What is 12 times 7?")
demo = ["demo", "--length", "512", "--facts", "2", "--routers", "dense", "mean_pool:k=2"]
said = run(*demo, "--report", "demo.html")
assert "mean_pool:k=2" in said and "wrote demo.html" in said, said
assert os.path.getsize(os.path.join(out, "demo.html")) > 1000
run("prune-encoder", "--conversion", os.path.join(models, "shrp-half-routed-s1.gguf"), "--out", "pruned.gguf")
assert run("classify", "--encoder", "pruned.gguf", "--text", "What is 12 times 7?")
MODEL = os.path.join(models, "sluice-mini-q8_0.gguf")
prune = ["prune", MODEL, "half.gguf", "--calibrate", TOKENS, "--count", "256", "--window", "128", "--held-out-count", "256"]
said = run(*prune, "--method", "sparse_gpt", "--pattern", "2:4")
told = re.search(r"perplexity (\d+\.\d+), before (\d+\.\d+), over 256 held-out tokens in windows of 128", said)
assert told and float(told[1]) > float(told[2]), said
assert "layer 5: attn_q 0." in said and "wrote half.gguf: 12716320 bytes (before: 12716320)" in said, said
windows = re.findall(r"held-out window at (\d+): perplexity (\d+\.\d+), before (\d+\.\d+), log perplexity (\+\d\.\d+)", said)
assert [int(w[0]) for w in windows] == [256 + 127 * 128, 256 + 382 * 128], said  # the middles of the halves of 510
of_file = ["perplexity", "--tokens", TOKENS, "--count", "128", "--model"]
for at, after, before, change in windows:
    for path, expected in ((MODEL, before), ("half.gguf", after)):
        measured = re.match(r"perplexity (\d+\.\d+)", run(*of_file, path, "--skip", at))
        assert abs(float(measured[1]) / float(expected) - 1) < 1e-3, (path, measured[1], expected)
    assert abs(math.log(float(after) / float(before)) - float(change)) < 1e-3, said
packed = run(*of_file, "half.gguf", "--skip", windows[0][0], "--sparse-weights", "2:4")
assert abs(float(re.match(r"perplexity (\d+\.\d+)", packed)[1]) / float(windows[0][1]) - 1) < 1e-3, packed
refused(*of_file, "half.gguf", "--sparse-weights", "on", says="allowed: off, bitmap, N:M")
refused(*of_file, MODEL, "--sparse-weights", "2:4", says="none of the layers' 24 matrices is sparse enough")
mean = sum(float(w[3]) for w in windows) / 2
assert abs(math.log(float(told[1]) / float(told[2])) - mean) < 1e-3, said
between = re.search(r"log perplexity (\S+) \[(\S+), (\S+)\] a window \(95 %, 2 windows\)", said)
assert between and abs(float(between[1]) - mean) < 1e-3 and float(between[2]) < mean < float(between[3]), said
assert ", goes" in run(*prune, "--method", "layers", "--sparsity", "0.2")
assert run(*of_file, "half.gguf").startswith("perplexity")
run(*prune, "--method", "wanda")
keep = ["search", "--keep", "0.6", "--method", "dass", "--palette", "dense", "--palette", "wanda@2:4", "--context", "64", "--documents", "1", "--held-out", "2",
        "--evaluations", "4", "--seeds", "2"]
said = run(*keep, "--out", "sparse.gguf")
assert re.search(r"8552448 weights in 12 groups, of which 0.600 may stay; 1 documents of 64 tokens are searched on, 2 others held out", said), said
assert re.search(r"uniform  keeps 0\.500, .*\n  attention\(6\*wanda@2:4\), ffn\(6\*wanda@2:4\)\n", said), said
found = re.search(r"dass     keeps (0\.\d+), perplexity \d+\.\d+, held out \d+\.\d+, log perplexity [+-]\d\.\d+ \[\S+, \S+\], [34] plans tried\n  attention", said)
assert found and float(found[1]) <= 0.6, said
assert re.search(r"dass (beats|ties with|loses to) random search: .*\nheld out: dass (beats|ties with|loses to) random search: ", said), said
assert "wrote sparse.gguf" in said and run("perplexity", "--tokens", TOKENS, "--count", "64", "--model", "sparse.gguf").startswith("perplexity")
calibrate = ["calibrate", "--tokens", TOKENS, "--count", "512", "--window", "256", "--rank", "4"]
run(*calibrate, "--out", "informed.gguf")
assert "informed_routing" in run("demo", "--length", "512", "--facts", "2", "--routers", "dense", "informed_routing:weights=informed.gguf")
spt = ["calibrate", "spt", "--tokens", TOKENS, "--count", "400", "--window", "200", "--blocks", "8", "--turns", "2"]
run(*spt, "--out", "spt.gguf")
routed = ["perplexity", "--tokens", TOKENS, "--count", "256", "--router"]
ppl = [float(re.search(r"perplexity ([\d.]+)", run(*routed, r)).group(1)) for r in ("dense", "expert/spt:weights=spt.gguf,m=0", "expert/spt:weights=spt.gguf,m=4")]
assert abs(ppl[1] / ppl[0] - 1) < 2e-3 and ppl[2] > ppl[0], ppl
assert "Example: sluice calibrate spt" in run("calibrate", "spt", "--help")
compare = ["compare", "--policy", "dense", "--context", "256", "--documents", "1", "--facts", "2", "--no-times", "--report", "compare"]
run(*compare)
within = ["search", "--within", "perplexity=90%,facts=100", "--context", "512", "--documents", "1", "--facts", "2", "--evaluations", "3", "--palette", "dense",
          "--palette", "mean_pool:k=4", "--palette", "sink_window:window=64"]
said = run(*within)
found = re.search(r"^greedy +attention .*\n  (per_layer\(.*\))\n  held out: perplexity [+-][\d.]+ %, facts [+-][\d.]+ points, attention [\d.]+x: within", said, re.M)
assert found and "\nrandom" in said, said
assert run(*within) == said  # nothing is measured again
assert run("perplexity", "--tokens", TOKENS, "--count", "64", "--router", found[1]).startswith("perplexity")
attention = ["evaluate", "attention", "--policy", "dense", "--policy", "mean_pool:k=4", "--context", "512", "--facts", "2", "--planted", "256"]
said = run(*attention)
assert "fastest policy within 1 % perplexity and 3 points of facts is" in said and "Planted: needles, 256 keys" in said and "wrote attention.html" in said, said
assert "fastest policy" in open(os.path.join(out, "attention.html")).read()
assert "Example: sluice evaluate attention" in run("evaluate", "attention", "--help")
schedule = ["search-schedule", "--prompts", "1", "--length", "256", "--population", "3", "--generations", "1"]
assert len(run(*schedule).split(",")) == 6

# Numbers. Every option, beyond both ends, no number at all, and what only looks like one.
HUGE = "9223372036854775807"
for option in ("--skip", "--count", "--windows", "--threads", "--chunk", "--dense-layers"):
    for value in ("-1", HUGE, "99999999999999999999", "nan", "x"):
        refused(*perplexity, option, value, says="allowed: ")
refused(*perplexity, "--windows", "0", says=["'0' was given", "allowed: 1 to"])
refused(*perplexity, "--count", "1", says="allowed: 2 to")
refused(*perplexity, "--count", "16385", says=["16385", "allowed: 2 to the model's context of 16384"])
refused(*perplexity, "--skip", "65536", says="holds 65536 tokens; asked for 64 after 65536")
refused(*perplexity, "--windows", "1025", says="holds 65536 tokens")
refused(*perplexity, "--dense-layers", "7", says="7 dense layers; allowed: 0 to the model's 6")
for option in ("--length", "--facts", "--prompts", "--threads"):
    for value in ("-1", HUGE, "nan"):
        refused(*facts, option, value, says="allowed: ")
for option in ("--length", "--facts", "--prompts"):
    refused(*facts, option, "0", says=["'0' was given", "allowed: 1 to"])
refused(*facts, "--facts", "17", says="allowed: 1 to 16")
refused(*facts[:-4], "--prompts", "1", "--facts", "no.json", says="cannot open no.json")
refused("facts", "--tokens", TOKENS, "--facts", file("bad.json", b'{"statement": "{name} is {code}"}'), says="1 of three texts")
refused("facts", "--tokens", TOKENS, "--facts", "doors.json", "--spaces", says="--spaces beside a file of a wording")
refused(*facts, "--length", "20", says="no room for 2 facts")
refused(*facts, "--length", "1", says="allowed: 2 to the model's context of 16384")
refused(*facts, "--length", "16385", says="allowed: 2 to the model's context of 16384")
refused(*facts, "--prompts", "1000", says="holds 65536 tokens")
for value in ("nan", "-nan", "inf", "-0.5", "x", "1e300"):
    refused(*generate, "--temperature", value, says=[f"'{value}' was given", "allowed: 0 to"])
for option, value in (("--count", "0"), ("--count", "-4"), ("--count", HUGE), ("--top-k", "-1"), ("--seed", "-1"), ("--seed", "1.5")):
    refused(*generate, option, value, says=[f"'{value}' was given", "allowed: "])
refused(*generate, "--count", "16384", says="together the model's context of 16384")
refused(*generate, "--prompt", "", says="the prompt is empty")
for option, value, allowed in (("--length", "255", "256 to"), ("--length", HUGE, "256 to"), ("--facts", "0", "1 to 16"), ("--facts", "17", "1 to 16")):
    refused("demo", option, value, says=f"allowed: {allowed}")
refused("demo", "--length", "16385", says="allowed: 256 to the model's context of 16384")
refused("demo", "--length", "256", "--facts", "16", says="no room for 16 facts")
refused("demo", "--stay", says="--sidecar")
refused("demo", "--sidecar", "--length", "512", says="--sidecar excludes --length")
refused("demo", "--sidecar", "--cost-weight", "nan", says="allowed: 0 to")
refused("demo", "--sidecar", "--port", "0", says="allowed: 1 to 65535")
for option, value in (("--documents", "0"), ("--facts", "17"), ("--seed", "-1"), ("--threads", "-1"), ("--chunk", "0")):
    refused(*compare, option, value, says=[f"'{value}' was given", "allowed: "])
for context, says in (("0", "is no length"), ("-1", "is no length"), (HUGE, "is no length"), ("4x", "is no length"), ("32", "allowed 64 to the model's 16384"),
                      ("32k", "allowed 64 to the model's 16384")):
    refused("compare", "--context", context, says=says)
refused("compare", "--context", "64", "--policy", "dense", says="no room for 16 facts")
for option, value in (("--budget", "nan"), ("--budget", "1.5"), ("--documents", "0"), ("--evaluations", "1"), ("--seed", "x")):
    refused("search", option, value, says=[f"'{value}' was given", "allowed: "])
refused("search", "--context", "16", says="search: 2 documents of 16 tokens")
for within in ("speed=2", "perplexity=1%,perplexity=2%", "facts=nan", "facts=-1"):
    refused("search", "--within", within, says=["--within: '", "allowed: perplexity=PERCENT%, facts=POINTS"])
refused("search", "--within", "facts=3", "--budget", "0.3", says="excludes")
refused("search", "--margin", "0.3", says="requires")
refused("search", "--within", "facts=3", "--margin", "nan", says="allowed: 0 to 0.9")
refused("search", "--within", "facts=3", "--context", "32k", says="131072 tokens; there are 65536 tokens")
refused("search", "--within", "facts=3", "--progress", "no/such/folder/file", says="cannot write no/such/folder/file")
for option, value in (("--sparsity", "nan"), ("--sparsity", "-0.1"), ("--prompts", "0"), ("--length", "100"), ("--population", "1"), ("--generations", "0"),
                      ("--start", "0,nan"), ("--start", "2")):
    refused(*schedule, option, value, says=["was given", "allowed: "])
refused(*schedule, "--start", "0,0.5", says="a start of 2 genes, wanted 6")
refused(*schedule, "--sparsity", "1", says="out of reach")
for option, value in (("--ridge", "nan"), ("--ridge", "0"), ("--sparsity", "nan"), ("--sparsity", "1.5"), ("--rank", "-1"), ("--window", "0"), ("--count", "0"),
                      ("--skip", "-1")):
    refused(*calibrate, option, value, says=[f"'{value}' was given", "allowed: "])
refused(*calibrate, "--rank", "385", says="allowed: 0 to the model's width of 384")
refused(*calibrate, "--count", "384", says="needs more than the width")
refused("calibrate", says="--tokens is required")
refused(*spt, "--count", "384", says="more than the width, 384")
refused(*spt, "--blocks", "5", says="5 blocks of 896 neurons")
refused(*spt, "--blocks", "0", says=["'0' was given", "allowed: "])
early = file("early.gguf")
tiny_models.smallthinker(1, 4096, tiny_models.BYTES).write(early)
refused("prune", early, "no.gguf", "--calibrate", TOKENS, says="pruning the architecture 'smallthinker'; implemented: 'llama'")
refused("evaluate", "small_thinker", "--model", MODEL, says="the model has no experts")
for option, value in (("--prompts", "0"), ("--length", "10"), ("--speed-length", "-1"), ("--repeats", "0"), ("--threads", "2000")):
    refused("evaluate", "flux_attention", option, value, says=[f"'{value}' was given", "allowed: "])
refused("evaluate", says="evaluate: nothing was named; allowed: attention, flux_attention")
for option, value in (("--documents", "0"), ("--stride", "0"), ("--facts", "17"), ("--seed", "-1")):
    refused(*attention, option, value, says=[f"'{value}' was given", "allowed: "])
refused(*attention, "--planted", "255", says="255 keys; allowed: 0, or 256 to 128k")
refused(*attention, "--within", "speed=1", says="allowed: perplexity=PERCENT%")
refused(*attention, "--context", "32k", says="allowed 64 to the model's 16384")
refused(*attention, "--policy", "nothing", says="policy 'nothing': no method")
refused("evaluate", "flux_attention", "--length", "16385", says="allowed: 512 to the model's context of 16384")
refused("evaluate", "flux_attention", "--speed-length", "10", says="allowed: 256 to the model's context")

for option, value in (("--sparsity", "nan"), ("--sparsity", "-0.1"), ("--sparsity", "1.5"), ("--skip", "-1"), ("--count", "1"), ("--window", "0"),
                      ("--held-out-skip", "x"), ("--held-out-count", "0"), ("--threads", "-1"), ("--count", HUGE)):
    refused(*prune, option, value, says=[f"'{value}' was given", "allowed: "])
sparse = ["search", "--keep", "0.6", "--context", "64", "--documents", "1", "--evaluations", "4"]
for option, value in (("--keep", "nan"), ("--keep", "-1"), ("--keep", "2"), ("--held-out", "0")):
    refused(*sparse, option, value, says="allowed: ")
refused(*sparse, "--groups", "head", says="head not in {layer,part,matrix}")
refused(*sparse, "--keep", "0", says="a share of 0 of the weights stays; allowed: above 0 to 1")
refused(*sparse, "--palette", "dense", says="a palette of 1 sparse operators; allowed: two or more")
refused(*sparse, "--palette", "dense", "wanda", says="operator 'wanda': nothing says what goes; allowed: dense, or a pruner")
refused(*sparse, "--budget", "0.5", says="--budget excludes --keep")
refused(*sparse, "--within", "perplexity=1%", says="excludes")
refused(*sparse, "--out", MODEL, says="is the file that is read; allowed: another")
refused("search", "--groups", "layer", says="--groups requires --keep")
refused(*prune, "--sparsity", "1", says="a sparsity of 1; allowed: 0 to below 1")
refused(*prune, "--window", "16385", says="allowed: 2 to the model's context of 16384")
refused(*prune, "--count", "65536", says="a text of 0 tokens is shorter than a window of 128; allowed")
refused(*prune, "--count", "65537", says="holds 65536 tokens; asked for 65537 after 0")
refused(*prune, "--pattern", "2:5", says="a sparsity of 0.6, and 0.5 was given")
refused(*prune, "--pattern", "5:10", says="width 384 is no multiple of M = 10")
refused(*prune, "--pattern", "4:2", says="allowed: N:M with N below M")
refused(*prune, "--method", "mean_pool", says="no method 'mean_pool'")
refused(*prune, "--start", "wanda", says="chooses its own mask")
refused(*prune, "--method", "layers", "--sparsity", "0.1", says="0.1 of 6 layers; allowed")
refused(*prune, "--held-out-count", "100", says="100 held-out tokens are less than a window of 128; allowed")
refused(*prune, "--held-out-skip", "65200", says="a text of 80 tokens is shorter than a window of 128; allowed")
refused(*prune, "--held-out-count", "65536", says="512 windows of 128 tokens; allowed: 1 to 510")
refused(*prune, "--count", "100", says="a calibration text of 100 tokens is shorter than a window of 128; allowed")
refused("prune", MODEL, MODEL, says="is the file that is read; allowed: another")
refused("prune", MODEL, says="out is required")

# Files. A pipe would wait for ever, a folder and a device have no size.
pipe = os.path.join(out, "pipe")
os.mkfifo(pipe)
for path in (pipe, "/dev/zero", out):
    refused("generate", "--model", path, says="not a regular file")
    refused("perplexity", "--tokens", path, says="not a regular file")
    refused("facts", "--tokens", path, says="not a regular file")
    refused("demo", "--text", path, says="not a regular file")
    refused("classify", "--encoder", path, "--text", "x", says="not a regular file")
    refused("compare", "--tokens", path, says="not a regular file")
    refused("demo", "--routers", "dense", f"ftp:weights={path}", "--length", "256", "--facts", "1", says="not a regular file")
refused("prune", TOKENS, "no.gguf", "--calibrate", TOKENS, says="not a GGUF file")
refused("prune", pipe, "no.gguf", says="not a regular file")
refused(*prune, "--calibrate", pipe, says="not a regular file")
refused(*prune, "--calibrate", file("short.txt", b"a few words"), says="tokens; asked for 256 after 0")
assert not os.path.exists(os.path.join(out, "no.gguf"))
# A disk that fills up leaves what was there, and nothing beside it.
kept = open(os.path.join(out, "half.gguf"), "rb").read()
for name in ("half.gguf", "full.gguf"):
    r = subprocess.run([sluice, prune[0], MODEL, name, "--method", "magnitude"], capture_output=True, text=True, cwd=out, timeout=60, restore_signals=False,
                       preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
    assert r.returncode == 1 and f"cannot write {name}" in r.stderr, r
assert open(os.path.join(out, "half.gguf"), "rb").read() == kept and not os.path.exists(os.path.join(out, "full.gguf"))
refused("perplexity", "--tokens", "nowhere", says="cannot open nowhere")
refused("perplexity", "--tokens", file("empty"), says="holds no tokens")
refused("perplexity", "--tokens", file("odd", b"abc"), says="holds 3 bytes")
refused("perplexity", "--tokens", file("one", b"ab"), says="holds 1 tokens; asked for 2048")
refused("perplexity", "--tokens", file("large", b"\xff\xff" * 64), "--count", "64", says="token 65535 is outside [0, 8192)")
refused("generate", "--model", TOKENS, says="not a GGUF file")
refused("generate", "--model", os.path.join(models, "intent-encoder-q8_0.gguf"), says="architecture 'bert'")
refused("classify", "--encoder", os.path.join(models, "sluice-mini-q8_0.gguf"), "--text", "x", says="architecture 'llama'")
refused("classify", "--text", "", says="empty")
refused(*perplexity, "--cache", "f64", says="allowed: f32, bf16, f16")
refused(*perplexity, "--router", "nothing", says="no method 'nothing'")
for path in ("no/such/folder/file", out, "/dev/full"):
    before = os.stat("/dev/full").st_mode
    for args in ([*perplexity, "--nll"], [*demo, "--report"], [*calibrate, "--out"],
                 ["prune-encoder", "--conversion", os.path.join(models, "shrp-half-routed-s1.gguf"), "--out"],
                 ["prune", MODEL]):
        refused(*args, path, says=f"cannot write {path}")
    assert os.stat("/dev/full").st_mode == before
refused(*compare[:-1], "no/such/folder/report", says="cannot write no/such/folder/report")
left = [name for name in os.listdir(out) if name.endswith((".part", ".probe"))]
assert not left, left
print(f"lab commands: {len(COMMANDS)} helps with examples, {refusals} wrong arguments refused")
