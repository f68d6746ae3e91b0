#!/usr/bin/env python3
"""Rules of the text that no formatter keeps:

  comma      an expression statement is one expression: no top-level comma (declarations may list names)
  function   a function has at most 80 lines, from its head to its closing brace; tests are free
  line       a line of a .h, .cc or .c file has at most 100 columns
  readme     the root README.md has at most 1,200 words (as wc -w counts)
  host       a file of runtime/host has at most 450 lines; tests are free

Violations that were there before a rule stand in check_text_allowed.txt, each with its size. A size may only fall: what
grows or is new fails, and so does an entry that promises more than there is.

Usage: check_text.py [ROOT] [--list | --tighten]
  --list     print every violation, allowed or not, and what is allowed of each rule in all
  --tighten  lower the allowed sizes to what there is; never raises one
"""
import pathlib
import re
import sys

MOST_COLUMNS, MOST_FUNCTION, MOST_WORDS, MOST_HOST = 100, 80, 1200, 450
FOLDERS = ("api", "routers", "pruners", "policies", "runtime", "plugins", "examples", "tests")
FROZEN = "tests/abi/frozen/"  # as a release once wrote it
ALLOWED = pathlib.Path(__file__).resolve().parent / "check_text_allowed.txt"

# Comments, literals and preprocessor lines, to be blanked with their line breaks kept.
NOISE = re.compile(
    r'//(?:\\\n|[^\n])*'
    r"|/\*.*?\*/"
    r'|R"([^(\s]*)\(.*?\)\1"'
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'"
    r"|^[ \t]*\#(?:\\\n|[^\n])*",
    re.S | re.M)
TOKEN = re.compile(r"[A-Za-z_]\w*|::|->|[(){}\[\];,:]|[^\s\w]|\d[\w.']*|\n")
CONTROL = re.compile(r"^(?:(?:if|while|for|switch) (?:constexpr )?\( \) |else |do |default : |case [^:?]*[^:?] : |\w+ : (?!:))")
TEMPLATE = re.compile(r"(?<=\w) < [\w\s:,*&.()\[\]-]*? >")
SPECIFIERS = re.compile(
    r"^(?:static|const|constexpr|constinit|inline|thread_local|extern|mutable|volatile|unsigned|signed|struct|class|enum|union"
    r"|typename|auto|virtual|using|typedef|template|friend|operator|explicit|public|private|protected|namespace|concept|SLUICE_METHOD) ")
DECLARATION = re.compile(r"^(?:(?::: )?\w+(?: :: \w+)* )(?:const )?(?:[*&] )*(?:const )?(\w+) (?:[=(\[{,;:]|$)")
NOT_TYPES = ("return", "throw", "delete", "co_return", "co_yield", "new", "goto", "case")


def is_test(path):
    return path.startswith("tests/") or path.endswith(("_test.cc", "_bench.cc", "_fuzz.cc"))


def blank(match):
    text = match.group(0)
    breaks = "\n" * text.count("\n")
    return breaks + ('""' if text[0] in "\"'R" else " ")


def chained(statement):
    """Is a statement, given as tokens outside brackets and without its semicolon, two or more expressions?"""
    text = " ".join(statement) + " "
    previous = None
    while previous != text:
        previous = text
        text = CONTROL.sub("", text)
    previous = None
    while previous != text:
        previous = text
        text = TEMPLATE.sub("", text)
    if " , " not in text:
        return False
    if SPECIFIERS.match(text):
        return False
    first = text.split(" ", 1)[0]
    return first in NOT_TYPES or not DECLARATION.match(text)


class Frame:
    """An open bracket: what kind, and the statement that it interrupted."""

    def __init__(self, kind, head, line, outer):
        self.kind, self.head, self.line, self.outer = kind, head, line, outer


def scan(text):
    """Yields ("comma", line, "") and ("function", lines, name)."""
    statement, began, stack, line = [], 1, [], 1
    for token in TOKEN.findall(NOISE.sub(blank, text)):
        if token == "\n":
            line += 1
            continue
        if not statement:
            began = line
        if token in "([":
            stack.append(Frame("round", None, line, (statement + [token], began)))
            statement = []
        elif token in ")]":
            if stack:
                statement, began = stack.pop().outer
            statement.append(token)
        elif token == "{":
            kind = brace(statement, stack)
            if kind == "list":
                stack.append(Frame(kind, None, line, (statement + ["{"], began)))
            else:
                stack.append(Frame(kind, statement, began, (statement, began)))
            statement = []
        elif token == "}":
            if not stack:
                continue
            frame = stack.pop()
            outer, began = frame.outer
            if frame.kind == "list":
                statement = outer + ["}"]
                continue
            if frame.kind == "function":
                yield "function", line - frame.line + 1, name_of(frame.head)
            # A lambda's body or a class with variables after it: the statement goes on.
            goes_on = frame.kind == "lambda" or frame.kind == "class"
            statement = outer + ["{", "}"] if goes_on else []
        elif token == ";":
            if not any(f.kind == "round" for f in stack[-1:]) and chained(statement):
                yield "comma", began, ""
            statement = []
        else:
            statement.append(token)


def brace(statement, stack):
    """What a { opens: a list of values, a namespace, class, function, lambda or block."""
    words = set(statement)
    last = statement[-1] if statement else ""
    inside = stack[-1].kind if stack else "namespace"
    if words & {"namespace"} or statement[-2:] == ["extern", '"'] or statement[:1] == ["extern"] and last == '"':
        return "namespace"
    if words & {"struct", "class", "union", "enum"} and ")" not in words and "=" not in words:
        return "class"
    if inside in ("namespace", "class"):
        return "function" if ")" in words and "=" not in words - {"operator"} or "operator" in words else "list"
    if inside in ("round", "list") or "=" in words or "return" in statement[:1]:
        if last in (")", "]", "mutable", "noexcept") and "[" in words:
            return "lambda"
        return "lambda" if "->" in words and "[" in words else "list"
    if not statement or last in (")", "else", "do", "try", ":", "constexpr"):
        return "lambda" if last == ")" and "[" in words and statement[0] not in ("if", "for", "while", "switch") else "block"
    return "list"


def name_of(head):
    """The words before the first ( of a function's head."""
    text = TEMPLATE.sub("", " ".join(head))
    text = re.sub(r"^template <.*?> (?=\w)", "", text)
    found = re.search(r"((?:~ )?\w+(?: :: (?:~ )?\w+)*|operator \S+(?: \S)?) \(", text)
    return found.group(1).replace(" ", "") if found else "?"


# What the scanner must see: a text, and its violations.
EXAMPLES = [
    ("void F() { a = 1, b = 2; }", ["comma"]),
    ("void F() { if (x) return Print(a, b), 1; }", ["comma"]),
    ("int F() { Each(n, [&](int i) { ++i, ++j; }); }", ["comma"]),
    ("auto f = [&](int i) { a[i] = 1, b = f(1, 2); };", ["comma"]),
    ("void F() { int a = 1, b = 2; std::map<int, int> m; float *x, *y; }", []),
    ("void F() { G(a, b); m[{1, 2}] = T{3, 4}; for (int i = 0, n = 9; i < n; ++i, --n) H<1, 2>(i); }", []),
    ("enum class E { kA, kB }; struct S { int a, b; S() : a(1), b(2) { F(); } };", []),
    ("// a, b; \nconst char* t = \"a, b;\"; int c = ',';", []),
    ("int F() {" + "\n" * 90 + "}", ["function"]),
    ("struct S {" + "\n" * 90 + "};", []),
]


def check_examples():
    for text, wanted in EXAMPLES:
        found = [rule for rule, number, _ in scan(text) if rule == "comma" or number > MOST_FUNCTION]
        if found != wanted:
            sys.exit(f"error: the scanner finds {found}, not {wanted}, in: {text}")


def violations(root):
    """{(rule, place): size} of the tree, and for lines and commas where they are."""
    sizes, where = {}, {}

    def add(rule, place, size, at):
        sizes[rule, place] = sizes.get((rule, place), 0) + size
        where.setdefault((rule, place), []).append(at)

    files = [f for top in FOLDERS for f in (root / top).rglob("*") if f.suffix in (".h", ".cc", ".c") and f.is_file()]
    for path in sorted(f.relative_to(root).as_posix() for f in files):
        if path.startswith(FROZEN):
            continue
        text = (root / path).read_text()
        lines = text.splitlines()
        for n, line in enumerate(lines, 1):
            if len(line) > MOST_COLUMNS:
                add("line", path, 1, f"{n}: {len(line)} columns")
        for rule, number, name in scan(text):
            if rule == "comma":
                add("comma", path, 1, f"{number}: {lines[number - 1].strip()}")
            elif number > MOST_FUNCTION and not is_test(path):
                add("function", f"{path}:{name}", number, f"{number} lines")
        if path.startswith("runtime/host/") and not is_test(path) and len(lines) > MOST_HOST:
            add("host", path, len(lines), f"{len(lines)} lines")
    words = len((root / "README.md").read_text().split())
    if words > MOST_WORDS:
        add("readme", "README.md", words, f"{words} words")
    return sizes, where


def read_allowed():
    entries = [line.split() for line in ALLOWED.read_text().splitlines() if line and not line.startswith("#")]
    return {(rule, place): int(size) for rule, place, size in entries}


def write_allowed(entries):
    head = "".join(line + "\n" for line in ALLOWED.read_text().splitlines() if line.startswith("#"))
    ALLOWED.write_text(head + "".join(f"{rule} {place} {size}\n" for (rule, place), size in sorted(entries.items())))


def main():
    options = [a for a in sys.argv[1:] if a.startswith("-")]
    roots = [a for a in sys.argv[1:] if not a.startswith("-")]
    if len(roots) > 1 or any(o not in ("--list", "--tighten") for o in options):
        sys.exit(__doc__)
    check_examples()
    root = pathlib.Path(roots[0] if roots else ".").resolve()
    sizes, where = violations(root)
    allowed = read_allowed()
    if "--tighten" in options:
        allowed = {key: min(size, sizes[key]) for key, size in allowed.items() if key in sizes}
        write_allowed(allowed)
    if "--list" in options:
        for (rule, place), size in sorted(sizes.items()):
            print(f"{rule} {place}: {size}, allowed {allowed.get((rule, place), 0)}")
            for at in where[rule, place]:
                print(f"    {at}")
        for rule in ("comma", "function", "line", "host", "readme"):
            of_rule = [size for (r, _), size in allowed.items() if r == rule]
            print(f"allowed, {rule}: {len(of_rule)} places, {sum(of_rule)} in all")
    bad = []
    for key in sorted(set(sizes) | set(allowed)):
        size, most = sizes.get(key, 0), allowed.get(key, 0)
        if size > most:
            bad.append(f"{key[0]}: {key[1]}: {size}, allowed {most}" + "".join("\n    " + at for at in where[key]))
        elif size < most:
            bad.append(f"{key[0]}: {key[1]}: {size}, and {ALLOWED.name} still allows {most}; lower it: "
                       "python3 tests/tools/check_text.py --tighten")
    print("\n".join(bad) if bad else f"text rules: clean but for {len(allowed)} places in {ALLOWED.name}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
