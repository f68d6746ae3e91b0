#!/usr/bin/env python3
"""Builds a project that has Sluice inside it, by add_subdirectory and by FetchContent, and runs it. Nothing
may be built that the project does not link, nothing downloaded, installed or tested, and no setting of the
project be changed.

Usage: embed_test.py SOURCE OUT
Example: tests/install/embed_test.py . /tmp/embed"""
import os
import pathlib
import shutil
import subprocess
import sys

if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
    sys.exit(__doc__)
source = os.path.abspath(sys.argv[1])
out = os.path.abspath(sys.argv[2])
project = os.path.join(source, "tests/install/embed")
shutil.rmtree(out, ignore_errors=True)

# What Sluice::runtime links.
RUNTIME = {
    f"libsluice_{name}.a"
    for name in "attend base dispatch dynload kernels pruners report routers session text weights".split()
}
# The consumer's own flags: unoptimised and for one instruction set, as only the linking is tried here.
FLAGS = "-O0 -DHWY_COMPILE_ONLY_STATIC"


def run(*args):
    # The same objects serve both builds where ccache is installed.
    env = {**os.environ, "CCACHE_BASEDIR": out, "CCACHE_NOHASHDIR": "1"}
    result = subprocess.run(args, capture_output=True, text=True, env=env)
    said = result.stdout + result.stderr
    assert result.returncode == 0, f"{' '.join(args)}\n{said[-4000:]}"
    return said


def libraries(build):
    return {p.name for p in pathlib.Path(build).rglob("*.a")}


for how in ["add_subdirectory", "FetchContent"]:
    build = os.path.join(out, how)
    launcher = shutil.which("ccache") or ""
    said = run("cmake", "-G", "Ninja", "-B", build, "-S", project, f"-DSLUICE={source}", f"-DHOW={how}",
               f"-DCMAKE_CXX_FLAGS={FLAGS}", f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}")
    for word in ["npm", "fetching", "protobuf", "benchmark", "GTest"]:
        assert word.lower() not in said.lower(), f"{how}: configuring speaks of {word}:\n{said}"

    run("cmake", "--build", build, "-j", "2", "--target", "headers_only", "strided")
    assert not libraries(build), f"{how}: headers alone built {libraries(build)}"
    run(os.path.join(build, "headers_only"))

    run("cmake", "--build", build, "-j", "2")
    assert libraries(build) == RUNTIME, f"{how}: built {libraries(build)}, wanted {RUNTIME}"
    run(os.path.join(build, "embedded"), os.path.join(build, "strided.so"))

    programs = {p.name for p in pathlib.Path(build).rglob("*")
                if p.is_file() and os.access(p, os.X_OK) and "CMakeFiles" not in p.parts}
    assert programs == {"headers_only", "embedded", "strided.so"}, f"{how}: built {programs}"
    tests = run("ctest", "--test-dir", build, "-N")
    assert "Total Tests: 0" in tests, f"{how}: {tests}"
    prefix = os.path.join(build, "prefix")
    run("cmake", "--install", build, "--prefix", prefix)
    assert not os.path.exists(prefix), f"{how}: installed {os.listdir(prefix)}"
    print(f"{how}: header-only program, whole program and plug-in built, run and loaded")
