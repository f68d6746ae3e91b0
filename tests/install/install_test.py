#!/usr/bin/env python3
"""Installs the build into a folder of its own and uses it as others would: find_package by component, pkg-config, every
public header alone, a plug-in out of tree, the .deb files. Usage: install_test.py BUILD SOURCE OUT"""
import collections
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys

build, source, out = sys.argv[1:]
shutil.rmtree(out, ignore_errors=True)
os.makedirs(out)
prefix = os.path.join(out, "prefix")


def run(*args, **kw):
    r = subprocess.run(args, capture_output=True, text=True, **kw)
    assert r.returncode == 0, f"{' '.join(args)}\n{r.stdout[-3000:]}{r.stderr[-3000:]}"
    return r.stdout


run("cmake", "--install", build, "--prefix", prefix)
consumer = os.path.join(out, "consumer")
strided = os.path.join(source, "plugins/example/strided.cc")
run("cmake", "-G", "Ninja", "-B", consumer, "-S", os.path.join(source, "tests/install/consumer"), f"-DCMAKE_PREFIX_PATH={prefix}", f"-DSTRIDED={strided}",
    "-DCMAKE_BUILD_TYPE=Release")
run("cmake", "--build", consumer, "-j", "2")
run(os.path.join(consumer, "headers_only"))
linked = run("ldd", os.path.join(consumer, "headers_only"))
assert "hwy" not in linked and "tbb" not in linked and "protobuf" not in linked, linked
run(os.path.join(consumer, "whole"), os.path.join(consumer, "strided.so"))
if os.path.exists(os.path.join(prefix, "include/sluice/runtime/host/model.h")):  # the host is a part that a build may leave out
    run(os.path.join(consumer, "host"))
assert not os.path.exists(os.path.join(prefix, "include/sluice/runtime/lab")), "the lab is no library to link"
print("consumer: header-only program, whole program, plug-in built and loaded")

said = run(os.path.join(prefix, "bin/sluice"), "plugin", "check", os.path.join(consumer, "strided.so"))
assert "attention/strided" in said, said
author = subprocess.run(["cmake", "-B", os.path.join(out, "author"), "-S", os.path.join(source, "plugins/example"), f"-DCMAKE_PREFIX_PATH={prefix}"], capture_output=True)
assert author.returncode == 0, author.stderr  # the example's own project, as its author starts it
run("cmake", "--build", os.path.join(out, "author"))

flags = run("pkg-config", "--cflags", "sluice", env={**os.environ, "PKG_CONFIG_PATH": os.path.join(prefix, "lib/x86_64-linux-gnu/pkgconfig") + ":" + os.path.join(prefix, "lib/pkgconfig")})
assert "include" in flags, flags

root = os.path.join(prefix, "include")
headers = [os.path.relpath(os.path.join(d, f), root) for d, _, files in os.walk(root) for f in files
           if f.endswith(".h") and not f.endswith("-inl.h") and "for_each" not in f and not d.endswith("/v1")]


GXX = ["g++", "-std=c++20", f"-I{root}"]


def included(h):
    with open(os.path.join(root, h), encoding="utf-8") as file:
        return re.findall(r'^#include ["<]([^">]+)[">]', file.read(), re.M)


# A header that includes another directly compiles alone if and only if it does so after that other, which is then parsed
# once for all who include it: whatever four headers include, if it is more than a little to parse.
pool = concurrent.futures.ThreadPoolExecutor(2)
direct = {h: included(h) for h in headers}
often = [h for h, n in collections.Counter(d for h in headers for d in direct[h]).items() if n >= 4]
parsed = os.path.join(out, "parsed")
os.makedirs(parsed)


def parse(h):
    stub = os.path.join(parsed, h.replace("/", "_") + ".h")
    with open(stub, "w", encoding="utf-8") as file:
        file.write(f"#include <{h}>\n")
    r = subprocess.run(GXX + ["-x", "c++-header", stub, "-o", stub + ".gch"], capture_output=True)
    return (os.path.getsize(stub + ".gch"), stub) if r.returncode == 0 else (0, "")  # it is a header of its own below


first = {h: p for h, p in zip(often, pool.map(parse, often)) if p[0] > 8 << 20}


def alone(h):
    most = max((first[d] for d in direct[h] if d in first), default=None)
    before = ["-Winvalid-pch", "-Werror=invalid-pch", "-include", most[1]] if most else []
    return subprocess.run(GXX + ["-fsyntax-only"] + before + ["-include", h, "-x", "c++", "/dev/null"], capture_output=True, text=True)


bad = [f"{h}: {r.stderr[-300:]}" for h, r in zip(headers, pool.map(alone, headers)) if r.returncode]
assert not bad, "\n".join(bad)
shutil.rmtree(parsed)
print(f"headers: {len(headers)} compile alone")

debs = os.path.join(out, "debs")
run("cpack", "-G", "DEB", "--config", os.path.join(build, "CPackConfig.cmake"), "-B", debs)
names = sorted(f for f in os.listdir(debs) if f.endswith(".deb"))
want = ["libsluice", "libsluice-dev", "sluice"]
if os.path.exists(os.path.join(build, "plugins/torch/sluice_torch.so")):
    want.insert(2, "libsluice-torch")
assert sorted(n.split("_")[0] for n in names) == want, names
print("packages:", ", ".join(names))
