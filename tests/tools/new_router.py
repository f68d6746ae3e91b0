#!/usr/bin/env python3
"""Creates a method: folder, method, reference, instantiation, test, and its line in builtin.def.
Usage: new_router.py TREE (router | pruner) DOMAIN NAME"""
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
# What is made where: (kind, domain) -> (folder of templates, root of the tree, words of the texts).
TEMPLATES = {
    ("router", "attention"): ("attention", "routers", {}),
    ("router", "layer"): ("run_or_skip", "routers", {"decides": "kPrompt"}),
    ("router", "token"): ("run_or_skip", "routers", {"decides": "kToken"}),
    ("router", "head"): ("best_units", "routers", {"decides": "kToken", "units": "heads"}),
    ("router", "expert"): ("best_units", "routers", {"decides": "kToken", "units": "experts"}),
    ("router", "adapter"): ("best_units", "routers", {"decides": "kPrompt", "units": "adapters"}),
    ("router", "agent"): ("agent", "routers", {}),
    ("pruner", "weight"): ("weight", "pruners", {}),
    ("pruner", "token"): ("run_or_skip", "pruners", {"decides": "kPrompt"}),
    ("pruner", "head"): ("best_units", "pruners", {"decides": "kPrompt", "units": "heads"}),
}


def usage():
    domains = {kind: ", ".join(d for k, d in TEMPLATES if k == kind) for kind, _ in TEMPLATES}
    lines = [f"  ./dev new-{kind} DOMAIN NAME    domains: {names}" for kind, names in domains.items()]
    sys.exit("usage:\n" + "\n".join(lines) + "\nNAME in lower_snake_case")


def main():
    if len(sys.argv) != 5 or tuple(sys.argv[2:4]) not in TEMPLATES or not re.fullmatch("[a-z][a-z0-9_]*", sys.argv[4]):
        usage()
    tree, kind, domain, name = pathlib.Path(sys.argv[1]), *sys.argv[2:]
    template, root, words = TEMPLATES[kind, domain]
    for r in ("routers", "pruners"):
        if (tree / r / domain / name).exists():
            sys.exit(f"error: {r}/{domain}/{name} exists")
    folder = tree / root / domain / name
    type_name = "".join(w.capitalize() for w in name.split("_"))
    words = {
        **words,
        "root": root,
        "domain": domain,
        "Domain": domain.capitalize(),
        "name": name,
        "Kind": type_name,
        "GUARD": f"SLUICE_{root.upper()}_{domain.upper()}_{name.upper()}_{name.upper()}",
        "path": f"sluice/{root}/{domain}/{name}/{name}",
        "Registry": f"Builtin{root.capitalize()}",
    }
    folder.mkdir(parents=True)
    for source in sorted((HERE / "templates" / template).glob("*.in")):
        text = re.sub("@([A-Za-z]+)@", lambda m: words[m.group(1)], source.read_text())
        (folder / source.name.removesuffix(".in").replace("method", name, 1)).write_text(text)
    with (tree / root / "builtin.def").open("a") as f:
        f.write(f"SLUICE_METHOD({domain}, {name}, {type_name})\n")
    print(f"created {root}/{domain}/{name}/ and its line in {root}/builtin.def; next: ./dev test -R {type_name}")


main()
