#!/usr/bin/env python3
"""llama.cpp's own test of backends, its attention and indexer cases, run against the backend: element types, odd lengths,
single queries, ALiBi, sinks, soft-caps, limits on what a row sees. Usage: backend_ops_test.py BACKEND HOST OUT, HOST a folder
with llama.cpp's src/ and lib/; without HOST: 77."""
import collections
import glob
import os
import re
import subprocess
import sys

if len(sys.argv) < 4:
    print("skipped: no llama.cpp in this build (npm and git fetch it, or -DSLUICE_GGML_DIR= names one)")
    sys.exit(77)
backend, host, out = sys.argv[1:]
os.makedirs(out, exist_ok=True)
source = os.path.join(host, "src/tests/test-backend-ops.cpp")
lib = os.path.join(host, "lib")
if not os.path.exists(source):
    print(f"skipped: {source} is missing")
    sys.exit(77)

# Its CPU backend is looked for beside the program.
program = os.path.join(out, "test-backend-ops")
for f in glob.glob(os.path.join(lib, "libggml-cpu-*.so")):
    link = os.path.join(out, os.path.basename(f))
    if not os.path.lexists(link):
        os.symlink(f, link)
if not os.path.exists(program) or os.path.getmtime(program) < os.path.getmtime(source):
    libraries = [f for name in ("libggml", "libggml-base") for f in sorted(glob.glob(os.path.join(lib, name + ".*so*")))[:1]]
    subprocess.run(["g++", "-std=c++17", "-O0", "-w", *(f"-I{os.path.join(host, 'src', d)}" for d in ("ggml/include", "tests", "common", "include")),
                    source, "-o", program, *libraries, f"-Wl,-rpath,{lib}"], check=True)

config = os.path.join(out, "sluice.conf")
with open(config, "w") as f:
    f.write("attention = dense\ndecode_min_keys = 0\nearly_steps = 1\n")
environment = dict(os.environ, GGML_BACKEND_PATH=backend, SLUICE_GGML_CONFIG=config)
CASES = (("FLASH_ATTN_EXT", r"hsk=64,hsv=64,nh=4,nr23=.1,1.,kv=113,nb=(1|3|75),mask=1.*permute=.0,1,2,3"),
         ("FLASH_ATTN_EXT", r"hsk=(128|576).*nr23=.4,1.,kv=512,nb=3,mask=1,sinks=1"),
         ("FLASH_ATTN_EXT", r"nb=[1-4],.*n_kv_max=[1-9]"),
         ("LIGHTNING_INDEXER", r"kv=(1|7|8|63|64|65),"),
         ("LIGHTNING_INDEXER", r"nh=32,kv=256,nb=1,"))
cases = collections.Counter()
for op, chosen in CASES:
    r = subprocess.run([program, "test", "-o", op, "-b", "Sluice", "-p", chosen], env=environment, capture_output=True, text=True)
    lines = [line for line in r.stdout.splitlines() if op + "(" in line]
    for line in lines:
        said = "OK" if "OK" in line else "not supported" if "not supported" in line else "FAIL"
        types = re.search(r"type_K=(\w+)(?:,type_V=(\w+))?", line).groups()
        cases[said, op, tuple(t for t in types if t)] += 1
        assert said != "FAIL", line
    assert lines, (op, chosen, r.stdout[-2000:], r.stderr[-2000:])

taken = {"f32", "f16", "bf16", "q8_0", "q4_0"}
for (said, op, types), n in sorted(cases.items()):
    print(said, op, *types, n)
    assert said == "OK" or not set(types) <= taken, (types, n)
for t in taken:
    assert cases["OK", "FLASH_ATTN_EXT", (t, t)] > 0, t
    assert cases["OK", "LIGHTNING_INDEXER", (t,)] > 0, t
print(f"{sum(n for (said, *_), n in cases.items() if said == 'OK')} cases as the CPU backend has them, none otherwise")
