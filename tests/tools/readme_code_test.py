#!/usr/bin/env python3
"""Every README.md of the tree says what is so:

  ```cpp        compiles (-fsyntax-only, C++20): as it is where it has an #include or a main; where its first line is
                `// fragment`, as the body of a function after PRELUDE below. Any other block is an error.
  ```sh, ```    the subcommands of `sluice` and `./dev` exist, and so do the long options given to `sluice`;
                nothing is run. `code` in the text that begins with one of the two is read the same way.
  [text](path)  a path that is no address leads to a file or folder of the tree.

Usage: readme_code_test.py ROOT COMPILER INCLUDE_FOLDER [SLUICE_PROGRAM]
Without the program, commands of `sluice` are not checked."""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys

# What a fragment may use: these headers, and a host's session, inputs and outputs of a call, and a registry.
PRELUDE = """
#include <cstdio>
#include "sluice/api/plan_builder.h"
#include "sluice/policies/compose/attention.h"
#include "sluice/runtime/dynload/plugin_library.h"
#include "sluice/runtime/session/attention_session.h"
using namespace sluice;
"""
FUNCTION = """
absl::Status Fragment{n}([[maybe_unused]] AttentionSession& session, [[maybe_unused]] int layer,
                         [[maybe_unused]] AttentionInputs inputs, [[maybe_unused]] SessionOutputs outputs,
                         [[maybe_unused]] Registry& registry) {{
#line {line} "{path}"
{code}
  return absl::OkStatus();
}}
"""
FOLDERS = ("api", "routers", "pruners", "policies", "runtime", "plugins", "examples", "tests")
BLOCK = re.compile(r"^```([a-z+]*)[^\n]*\n(.*?)^```[ \t]*$", re.S | re.M)
SPAN = re.compile(r"`((?:sluice|\./dev) [^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block:
    def __init__(self, path, text, match):
        self.path, self.language, self.code = path, match.group(1), match.group(2)
        self.line = text.count("\n", 0, match.start(2)) + 1

    def fragment(self):
        return self.code.split("\n", 1)[0].strip() == "// fragment"

    def whole(self):
        return "#include" in self.code or "int main" in self.code


def compiles(compiler, include, source):
    """The compiler's complaints, or nothing."""
    command = [compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers",
               "-Wno-unused-function", "-I", include, "-x", "c++", "-"]
    run = subprocess.run(command, input=source, capture_output=True, text=True)
    return "" if run.returncode == 0 else run.stderr


class Commands:
    """What `PROGRAM --help` and `PROGRAM COMMAND --help` name, asked once."""

    def __init__(self, program):
        self.program, self.help = program, {}

    def text(self, words):
        if words not in self.help:
            run = subprocess.run([self.program, *words, "--help"], capture_output=True, text=True)
            self.help[words] = run.stdout if run.returncode == 0 else ""
        return self.help[words]

    def names(self, words):
        """Commands below these words: the first words of the indented lines."""
        found = set()
        for line in self.text(words).splitlines():
            m = re.match(r"  ([a-z][a-z |-]*?)(?: [A-Z\[(]|  |$)", line)
            if m:
                found.update(n.strip() for n in m.group(1).split("|"))
        return found


def wrong_commands(line, sluice, dev):
    """What a line of shell asks of the two programs that they do not have."""
    # Comments and quoted texts say nothing of commands.
    line = re.sub(r"(^|\s)#.*", "", re.sub(r"'[^']*'|\"[^\"]*\"", "''", line))
    for part in re.split(r"[|;&()]+|\$\(", line):
        words = [w for w in part.split() if not re.fullmatch(r"[A-Z_]+=\S*", w)]
        if not words:
            continue
        if words[0] == "./dev" and len(words) > 1 and not words[1].startswith("-") and words[1] not in dev.names(()):
            yield f"./dev has no command '{words[1]}'"
        if os.path.basename(words[0]) != "sluice" or words[0].endswith("/") or sluice is None or len(words) == 1:
            continue
        if words[1].startswith("-"):
            continue
        if words[1] not in sluice.names(()):
            yield f"sluice has no command '{words[1]}'"
            continue
        path = (words[1],)
        if len(words) > 2 and words[2] in sluice.names(path):
            path += (words[2],)
        for option in (w.split("=")[0] for w in words[2:] if re.fullmatch(r"--[a-z][a-z-]*(=\S*)?", w)):
            if not re.search(re.escape(option) + r"(?![a-z-])", sluice.text(path)) and option != "--help":
                yield f"sluice {' '.join(path)} has no option {option}"


def check_myself(compiler, include):
    """The test can fail."""
    assert compiles(compiler, include, "int main() { return nothing; }\n")
    assert not compiles(compiler, include, "int main() { return 0; }\n")


def main():
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    root, compiler, include = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3]
    sluice = Commands(sys.argv[4]) if len(sys.argv) > 4 else None
    dev = Commands(str(root / "dev"))
    assert dev.names(()) >= {"build", "test", "fmt"}, dev.names(())
    assert list(wrong_commands("./dev nonsense | ./dev build", None, dev)) == ["./dev has no command 'nonsense'"]
    if sluice is not None:
        assert sluice.names(()) >= {"serve", "compare"}, sluice.names(())
        wrong = list(wrong_commands("A=1 sluice nonsense; build/sluice route --nonsense 1", sluice, dev))
        assert wrong == ["sluice has no command 'nonsense'", "sluice route has no option --nonsense"], wrong
    check_myself(compiler, include)

    bad, sources, fragments, shell = [], [], "", 0
    readmes = [root / "README.md"] + sorted(f for top in FOLDERS for f in (root / top).rglob("README.md"))
    for readme in readmes:
        path = readme.relative_to(root).as_posix()
        text = readme.read_text()
        blocks = [Block(path, text, m) for m in BLOCK.finditer(text)]
        for b in blocks:
            if b.language == "cpp" and b.fragment():
                fragments += FUNCTION.format(n=fragments.count("absl::Status Fragment"), line=b.line, path=path, code=b.code)
            elif b.language == "cpp" and b.whole():
                sources.append(f'#line {b.line} "{path}"\n{b.code}')
            elif b.language == "cpp":
                bad.append(f"{path}:{b.line}: neither whole (#include or main) nor a '// fragment'")
            elif b.language in ("", "sh"):
                for n, line in enumerate(b.code.splitlines(), b.line):
                    shell += 1
                    bad += [f"{path}:{n}: {why}" for why in wrong_commands(line, sluice, dev)]
        prose = BLOCK.sub(lambda m: "\n" * m.group(0).count("\n"), text)
        for n, line in enumerate(prose.splitlines(), 1):
            for span in SPAN.findall(line):
                shell += 1
                bad += [f"{path}:{n}: {why}" for why in wrong_commands(span, sluice, dev)]
            for link in LINK.findall(line):
                target = link.split("#")[0]
                if target and not re.match(r"[a-z]+:", target) and not (readme.parent / target).exists():
                    bad.append(f"{path}:{n}: {link} leads nowhere")
    if fragments:
        sources.append(PRELUDE + fragments)
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        bad += filter(None, pool.map(lambda s: compiles(compiler, include, s), sources))
    print("\n".join(bad) if bad else
          f"{len(readmes)} READMEs: {len(sources)} compilations, {shell} lines of commands, all as the tree has it")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
