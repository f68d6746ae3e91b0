#!/usr/bin/env python3
"""Configures the tree on machines that have half of what is optional: that must never fail, nor take long,
and what is left out is named in one line. Usage: configure_test.py SOURCE OUT"""
import os
import shutil
import subprocess
import sys
import time

if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
    sys.exit(__doc__)
source = os.path.abspath(sys.argv[1])
out = os.path.abspath(sys.argv[2])
shutil.rmtree(out, ignore_errors=True)

LEAST = ["TESTS", "BENCH", "PLUGINS", "EXAMPLES", "SERVICE"]


def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, mode)
    return path


def configure(name, wanted, *args):
    options = [f"-DSLUICE_BUILD_{part}={'ON' if part in wanted else 'OFF'}" for part in LEAST]
    begin = time.monotonic()
    r = subprocess.run(["cmake", "-G", "Ninja", "-B", os.path.join(out, name), "-S", source, *options, *args],
                       capture_output=True, text=True)
    said = r.stdout + r.stderr
    assert r.returncode == 0, f"{name}: {said[-3000:]}"
    assert time.monotonic() - begin < 60, f"{name} took {time.monotonic() - begin} s"
    return said


def left_out(said, why):
    lines = [line for line in said.splitlines() if "plugins/ggml" in line and "fetching" not in line]
    assert len(lines) == 1 and "is not built" in lines[0] and why in lines[0], said


# oneDNN's headers and CMake package without OpenCL's, as libdnnl-dev comes: its package ends the configuration.
prefix = os.path.join(out, "half")
write(os.path.join(prefix, "include/oneapi/dnnl/dnnl.hpp"), "")
write(os.path.join(prefix, "lib/cmake/dnnl/dnnl-config.cmake"), 'message(FATAL_ERROR "Could NOT find OpenCL")\n')
configure("half_dnnl", ["BENCH"], f"-DCMAKE_PREFIX_PATH={prefix}")

# llama.cpp cannot be fetched.
left_out(configure("no_npm", ["PLUGINS"], "-DNPM="), "there is no npm")
left_out(configure("no_git", ["PLUGINS"], "-DNPM=/bin/true", "-DGIT="), "there is no git")
npm = write(os.path.join(out, "npm"), "#!/bin/sh\necho 'npm ERR! network' >&2\nexit 1\n", 0o755)
left_out(configure("no_network", ["PLUGINS"], f"-DNPM={npm}", "-DGIT=/bin/true"), "npm cannot fetch node-llama-cpp")
left_out(configure("no_llama", ["PLUGINS"], "-DSLUICE_GGML_DIR=/nowhere"), "/nowhere has no src")
print("configuration: half of oneDNN, no npm, no git, no network, no llama.cpp")
