#!/usr/bin/env python3
"""Methods as ./dev new-router and new-pruner make them: adding one touches its folder and one line of builtin.def; what
is made builds, passes its own test and the conformance kit, and runs as a plug-in.
Usage: new_method_test.py SOURCE BUILD WORK"""
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

MADE = [("router", d) for d in ("layer", "token", "head", "attention", "expert", "adapter", "agent")]
MADE += [("pruner", d) for d in ("weight", "token", "head")]
# What the kit compares with; everything else that is built in stays out of the small build.
KEPT = ("SLUICE_METHOD(weight, magnitude, Magnitude)", "SLUICE_METHOD(attention, dense, Dense)")


def files_of(tree):
    found = {}
    for root in ("routers", "pruners", "api", "runtime", "policies", "plugins", "tests"):
        for folder, _, names in os.walk(tree / root):
            for name in names:
                path = pathlib.Path(folder) / name
                found[path.relative_to(tree).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run(*command, **more):
    print("+", *command, flush=True)
    subprocess.run([str(c) for c in command], check=True, **more)


def make_each(tree):
    """Makes every method, each time counting what changed."""
    for kind, domain in MADE:
        root = f"{kind}s"
        name = f"made_{kind}_{domain}"
        before = files_of(tree)
        definition = (tree / root / "builtin.def").read_text()
        run(sys.executable, tree / "tests/tools/new_router.py", tree, kind, domain, name)
        after = files_of(tree)
        new = sorted(set(after) - set(before))
        changed = sorted(f for f in before if after.get(f) != before[f])
        folder = f"{root}/{domain}/{name}/{name}"
        assert new == sorted(folder + end for end in (".cc", ".h", "_reference.h", "_test.cc")), new
        assert changed == [f"{root}/builtin.def"], changed
        added = (tree / root / "builtin.def").read_text().removeprefix(definition)
        assert added.count("\n") == 1 and added.startswith(f"SLUICE_METHOD({domain}, {name}, "), added


def refuses(tree):
    for arguments in (["router", "weight", "x"], ["pruner", "agent", "x"], ["router", "layer", "Camel"],
                      ["router", "layer", "made_router_layer"]):
        said = subprocess.run([sys.executable, tree / "tests/tools/new_router.py", tree, *arguments], capture_output=True, text=True)
        assert said.returncode != 0 and ("usage:" in said.stderr or "exists" in said.stderr), said


def main():
    source, build, work = (pathlib.Path(a).resolve() for a in sys.argv[1:4])
    tree = work / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for folder in ("api", "runtime", "policies", "plugins", "tests", "routers", "pruners"):
        shutil.copytree(source / folder, tree / folder)
    make_each(tree)
    refuses(tree)

    for root in ("routers", "pruners"):
        definition = tree / root / "builtin.def"
        lines = [line for line in definition.read_text().splitlines() if "made_" in line or line in KEPT]
        definition.write_text("\n".join(lines) + "\n")
    out = work / "build"
    run("cmake", "-G", "Ninja", "-S", tree / "tests/tools/generated", "-B", out, f"-DTREE={tree}", f"-DBUILD={build}", "-DCMAKE_BUILD_TYPE=Release",
        stdout=subprocess.DEVNULL)
    run("cmake", "--build", out, "-j", "2")
    for test in ("made_test", "made_conformance_test"):
        run(out / test, "--gtest_brief=1")


main()
