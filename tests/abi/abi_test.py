#!/usr/bin/env python3
"""What a plug-in file may show, and that compilers mix: abi_test.py symbols FILE... | compilers SOURCE BUILD COMPILER OTHER
Exit status 77: the other compiler is not there."""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile


def out(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols(files):
    for file in files:
        exported = sorted({line.split()[-1].split("@")[0] for line in out("nm", "-D", "--defined-only", file).splitlines()})
        want = ["sluice_plugin_entry_v1"] if "ggml" not in file else [s for s in exported if s.startswith("ggml_backend_")]
        assert exported == want and exported, f"{file} exports {exported}"
        needed = re.findall(r"NEEDED.*\[(.*)\]", out("readelf", "-d", file))
        free = ("libabsl_", "libstdc++.", "libm.", "libgcc_s.", "libc.", "ld-linux", "libhwy.", "libtbb.", "libasan.", "libubsan.", "libtsan.")
        assert all(n.startswith(free) for n in needed), f"{file} needs {needed}"
        # Code that runs at loading: the compiler's own (one for frames, one that asks which instructions the CPU has) and the
        # standard streams', none of a plug-in's.
        arrays = re.search(r"INIT_ARRAYSZ\)\s+(\d+)", out("readelf", "-d", file))
        count = int(arrays.group(1)) // 8 if arrays else 0
        # The standard streams' own, one an object file: the llama.cpp backend links the library's.
        assert count <= (3 if "ggml" not in file else 24), f"{file} runs {count} functions when it is loaded"
        print(f"{file}: {len(exported)} symbol(s), {count} initializer(s), {len(needed)} libraries")


def compilers(source, build, compiler, other):
    path = shutil.which(other)
    if path is None:
        print(f"skipped: {other} is not installed")
        return 77
    absl = out("pkg-config", "--cflags", "--libs", "absl_statusor", "absl_strings", "absl_span", "absl_function_ref").split()
    with tempfile.TemporaryDirectory() as folder:
        said = {}
        made = {}
        for name, cxx in (("ours", compiler), ("theirs", path)):
            common = [cxx, "-std=c++20", "-O2", f"-I{build}/include"]
            plugin, host = f"{folder}/{name}.so", f"{folder}/{name}"
            out(*common, "-fPIC", "-fvisibility=hidden", "-shared", f"-Wl,--version-script={source}/plugins/plugin.map",
                f"{source}/plugins/example/strided.cc", "-o", plugin, *absl)
            out(*common, f"{source}/tests/abi/host.cc", f"{source}/runtime/dynload/plugin_library.cc", f"{source}/runtime/dynload/child_check.cc", "-o", host, *absl, "-ldl")
            made[name] = (plugin, host)
        symbols([plugin for plugin, _ in made.values()])
        for host in made:
            for plugin in made:
                said[host, plugin] = out(made[host][1], made[plugin][0])
        first = said["ours", "ours"]
        assert "15: 0 3 6 9 12 14 15" in first and "stride" in first, first
        for pair, text in said.items():
            assert text == first, f"{pair}: {text}"
            print(f"host by {compiler if pair[0] == 'ours' else path}, plug-in by {compiler if pair[1] == 'ours' else path}: the same plan")
    return 0


if __name__ == "__main__":
    sys.exit(symbols(sys.argv[2:]) if sys.argv[1] == "symbols" else compilers(*sys.argv[2:]))
