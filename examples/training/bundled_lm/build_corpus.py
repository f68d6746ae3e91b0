#!/usr/bin/env python3
"""Collects documentation text from Debian packages into one corpus file.

Needs only the Python standard library and apt. Documents are separated by a NUL byte; the order is fixed by
path, so the same package versions give the same bytes.

Example:
  build_corpus.py --work /tmp/docs --out /tmp/corpus.txt.xz
"""
import argparse
import glob
import hashlib
import html.parser
import lzma
import os
import gzip
import re
import subprocess

PACKAGES = """linux-doc-6.1 python3.11-doc perl-doc postgresql-doc-15 git-doc debian-policy developers-reference
debian-handbook debian-reference-en sqlite3-doc cmake-doc vim-doc nginx-doc apache2-doc
python-django-doc bash-doc zsh-doc r-doc-html debian-faq maint-guide""".split()
SKIP_TAGS = {"script", "style", "nav", "head", "footer", "svg"}
BLOCK_TAGS = {"p", "div", "li", "tr", "pre", "h1", "h2", "h3", "h4", "h5", "dt", "dd", "br", "table", "section"}


class TextOf(html.parser.HTMLParser):
    """Visible text of a page; block elements become line breaks."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.out, self.skipping, self.pre = [], 0, 0

    def handle_starttag(self, tag, attrs):
        if tag in SKIP_TAGS:
            self.skipping += 1
        if tag == "pre":
            self.pre += 1
        if tag in BLOCK_TAGS:
            self.out.append("\n")

    def handle_endtag(self, tag):
        if tag in SKIP_TAGS and self.skipping:
            self.skipping -= 1
        if tag == "pre" and self.pre:
            self.pre -= 1
        if tag in BLOCK_TAGS:
            self.out.append("\n")

    def handle_data(self, data):
        if not self.skipping:
            self.out.append(data if self.pre else re.sub(r"\s+", " ", data))


def read_document(path):
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rb") as f:
        raw = f.read()
    name = path[:-3] if path.endswith(".gz") else path
    if name.endswith((".html", ".htm", ".en")):
        parser = TextOf()
        parser.feed(raw.decode("utf-8", "replace"))
        text = "".join(parser.out)
    elif name.endswith((".txt", ".rst", ".pod", ".md", ".rst.txt")):
        text = raw.decode("utf-8", "replace")
    else:
        return ""
    text = re.sub(r"[ \t]+\n", "\n", text.replace("\0", " "))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", required=True, help="folder for the downloaded packages")
    p.add_argument("--out", required=True, help="corpus file to write (.xz)")
    p.add_argument("--max-mb", type=int, default=90, help="stop after this much text")
    p.add_argument("--packages", nargs="+", default=PACKAGES, help="default: those of sluice-mini")
    args = p.parse_args()
    tree = os.path.join(args.work, "x")
    os.makedirs(tree, exist_ok=True)
    for package in args.packages:
        if not glob.glob(os.path.join(args.work, package + "_*.deb")):
            subprocess.run(["apt-get", "download", "-qq", package], cwd=args.work, check=False)
        for deb in glob.glob(os.path.join(args.work, package + "_*.deb")):
            subprocess.run(["dpkg", "-x", deb, tree], check=True)
    documents, seen, total = [], set(), 0
    paths = sorted(os.path.join(d, f) for d, _, files in os.walk(tree) for f in files)
    # Order by a hash of the path, so that a cap on size takes evenly from all packages.
    for path in sorted(paths, key=lambda s: hashlib.sha1(s[len(tree):].encode()).hexdigest()):
        if os.path.islink(path) or re.search(r"genindex|searchindex|changelog|_sources|py-modindex", path):
            continue
        text = read_document(path)
        if len(text) < 800 or sum(c < "\x7f" for c in text) < 0.97 * len(text):
            continue
        digest = hashlib.sha1(text.encode()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        documents.append(text[:400_000])
        total += len(documents[-1])
        if total > args.max_mb << 20:
            break
    with lzma.open(args.out, "wb", preset=6) as f:
        f.write("\0".join(documents).encode())
    print(f"{len(documents)} documents, {total / 2**20:.1f} MiB of text, {os.path.getsize(args.out) / 2**20:.1f} MiB packed")


if __name__ == "__main__":
    main()
