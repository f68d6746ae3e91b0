#!/usr/bin/env python3
"""Checks the #include lines of the tree against the layer rules: which folder may see which, and which library may
appear where. Prints one line a violation; exit status 1 when there is any."""
import pathlib
import re
import sys

ROOT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
# Lower numbers may not include higher ones; equal numbers only inside the same folder (or the parent's common/).
LAYERS = [("api", 0), ("runtime/base", 1), ("runtime/kernels", 1), ("routers", 2), ("pruners", 2), ("policies", 2),
          ("runtime/attend", 3), ("runtime/dispatch", 3), ("runtime/dynload", 3), ("runtime/store", 3), ("runtime/weights", 2),
          ("runtime/report", 4), ("runtime/session", 4), ("runtime/text", 4), ("runtime/host", 5), ("runtime/lab", 6),
          ("runtime/service", 6), ("runtime/cli", 7)]
ONLY_IN = {"tbb/": ["runtime/base"], "hwy/": ["runtime/kernels"], "cblas.h": ["runtime/host"], "google/protobuf": ["runtime/service", "runtime/cli", "examples/clients"],
           "zmq": ["runtime/service", "runtime/cli", "examples/clients"], "sqlite3.h": ["runtime/store"], "hiredis/": ["runtime/store"],
           "httplib.h": ["runtime/service"], "prometheus/": ["runtime/service"]}
# Hosts make methods by their registered names: none of these may include a method's own header.
BY_NAME = ("runtime/attend/", "runtime/dispatch/", "runtime/session/", "runtime/text/", "runtime/host/", "runtime/dynload/",
           "runtime/service/")
METHOD = re.compile(r"(routers|pruners)/(?!common/)[^/]+/(?!common/)[^/]+/")
FREE = ("tests/", "examples/", "plugins/")


def layer(path):
    best = max((name for name, _ in LAYERS if path.startswith(name + "/")), key=len, default=None)
    return best, dict(LAYERS).get(best)


def unit(path):
    """The method's own folder: routers/attention/dense, runtime/kernels/dot, runtime/attend."""
    parts = path.split("/")
    depth = 3 if parts[0] in ("routers", "pruners", "policies") or path.startswith("runtime/kernels/") else 2
    return "/".join(parts[:depth]) if len(parts) > depth else "/".join(parts[:-1])


def main():
    bad = []
    for file in sorted(ROOT.rglob("*")):
        path = file.relative_to(ROOT).as_posix()
        if file.suffix not in (".h", ".cc", ".c") or path.startswith(("build/", ".")):
            continue
        is_test = path.endswith("_test.cc")
        own, rank = layer(path)
        for n, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            m = re.match(r'\s*#\s*include\s*["<]([^">]+)[">]', line)
            if not m:
                continue
            inc = m.group(1)
            for lib, places in ONLY_IN.items():
                if inc.startswith(lib) and not any(path.startswith(p + "/") for p in places) and not path.startswith("tests/"):
                    bad.append(f"{path}:{n}: <{inc}> belongs to {', '.join(places)}")
            if not inc.startswith("sluice/") or own is None or is_test:
                continue
            target = inc[len("sluice/"):]
            if target.startswith(FREE):
                bad.append(f"{path}:{n}: a library may not include {inc}")
                continue
            if path.startswith(BY_NAME) and METHOD.match(target):
                bad.append(f"{path}:{n}: includes the method {target}; hosts make methods by name")
                continue
            there, there_rank = layer(target)
            if there is None or (there_rank < rank):
                continue
            if there_rank > rank:
                bad.append(f"{path}:{n}: {own} (layer {rank}) includes {there} (layer {there_rank})")
            elif unit(path) != unit(target) and "/common/" not in target and unit(path) != unit(target).rsplit("/", 1)[0] and not target.endswith("for_each_target.h"):
                bad.append(f"{path}:{n}: sibling include of {inc}; shared code goes to common/")
    print("\n".join(bad) if bad else "include layers: clean")
    return 1 if bad else 0


sys.exit(main())
