#!/usr/bin/env python3
"""Makes the reports of `sluice replay` and `sluice compare` twice, wants the same bytes, and looks at them in headless
Chromium at the widths of a desk and a phone. Usage: report_page_test.py SLUICE LOG OUT_FOLDER. Exit 77: no browser."""
import json
import os
import shutil
import subprocess
import sys

from browser import open_browser

sluice, log, out = sys.argv[1:]
shutil.rmtree(out, ignore_errors=True)
os.makedirs(out)


def run(*args, status=0):
    r = subprocess.run([sluice, *args], capture_output=True, text=True, cwd=out)
    assert r.returncode == status, (args, r.returncode, r.stdout, r.stderr)
    return r.stdout + r.stderr


replay = ["replay", "--log", log, "--policy", "random", "--policy", "thompson", "--policy", "amro_s", "--cost-weight", "0,5", "--seeds", "2", "--decisions", "900"]
compare = ["compare", "--policy", "dense", "--policy", "mean_pool:k=2", "--policy", "per_layer(2*dense | sink_window:window=64)", "--context", "256,512", "--documents", "2",
           "--facts", "4", "--no-times"]
for n in ("1", "2"):
    run(*replay, "--report", f"replay{n}")
    run(*compare, "--report", f"compare{n}")
for name in ("replay", "compare"):
    for end in (".html", ".json", ".csv", "-2.csv"):
        a, b = (open(os.path.join(out, f"{name}{n}{end}"), "rb").read() for n in "12")
        assert a == b and a, f"{name}{end} differs between two runs of one seed"
rows = json.load(open(os.path.join(out, "compare1.json")))["tables"][1]["rows"]
assert [r["policy"] for r in rows][1] == "mean_pool:k=2" and rows[1]["density"] < rows[0]["density"] == 1, rows
assert "seconds" not in rows[0] and "s" not in rows[0], rows[0]
said = run(*compare, "--report", "compare1")  # all known: nothing is measured again
assert "document 1/2" not in said, said
assert "allowed 64 to the model's" in run("compare", "--context", "32", "--report", "x", status=1)
assert "is no length" in run("compare", "--context", "4x", "--report", "x", status=1)
assert "per_layer(" in run("search", "--context", "256", "--documents", "1", "--evaluations", "4", "--palette", "dense", "--palette", "mean_pool:k=2", "--budget", "0.9")
assert "sluice compare" in run("compare", "--help")
assert "no command 'nothing-of-that-name'" in run("nothing-of-that-name", status=2)

browser = open_browser()
from selenium.webdriver.common.by import By
try:
    for name, charts, tables, maps in (("replay1", 4, 2, 0), ("compare1", 2, 2, 2)):
        for width in (1400, 500):
            browser.set_window_size(width, 1100)
            browser.get("file://" + os.path.join(out, name + ".html"))
            wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{name} is {wide} px wider than a window of {width}"
            svg = browser.find_elements(By.CSS_SELECTOR, ".charts svg")
            assert len(svg) == charts, (name, len(svg))
            for s in svg:
                assert s.size["width"] > 300 and s.find_elements(By.CSS_SELECTOR, "circle, polyline"), (name, s.size)
                # Nothing is drawn outside its picture, and the labels of an axis do not run into each other.
                bad = browser.execute_script("""
                    const box = arguments[0].getBoundingClientRect(), bad = [];
                    const texts = [...arguments[0].querySelectorAll('text.mid:not([transform])')].map(t => t.getBoundingClientRect());
                    for (const t of texts) if (t.left < box.left - 1 || t.right > box.right + 14) bad.push('outside');
                    const line = texts.filter(t => Math.abs(t.top - texts[0].top) < 2).sort((a, b) => a.left - b.left);
                    for (let i = 1; i < line.length; ++i) if (line[i].left < line[i - 1].right) bad.push('overlap');
                    return bad""", s)
                assert not bad, (name, width, bad)
            assert len(browser.find_elements(By.CSS_SELECTOR, "table:not(.heat)")) == tables
            assert len(browser.find_elements(By.CSS_SELECTOR, "table.heat")) >= 2
            assert len(browser.find_elements(By.CSS_SELECTOR, ".maps svg")) == maps
            browser.save_screenshot(os.path.join(out, f"{name}-{width}.png"))
    errors = [e for e in browser.get_log("browser") if e["level"] == "SEVERE" and "favicon" not in e["message"]]
    assert not errors, errors
    print("reports: same bytes twice, charts, tables and maps at both widths;", out)
finally:
    browser.quit()
