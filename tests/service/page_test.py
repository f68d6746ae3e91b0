#!/usr/bin/env python3
"""Opens the sidecar's page in headless Chromium while a demo feeds it, clicks through it, keeps screenshots.
Usage: page_test.py SLUICE LOG OUT_FOLDER. Exit status 77: no browser here."""
import os
import re
import socket
import subprocess
import sys
import time

from browser import open_browser

sluice, log, out = sys.argv[1:]
os.makedirs(out, exist_ok=True)
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
server = subprocess.Popen([sluice, "demo", "--sidecar", "--log", log, "--queries", "3000", "--port", str(port), "--stay"], stdout=subprocess.PIPE, text=True)
browser = None
try:
    decision = None
    for line in server.stdout:
        if m := re.match(r"why decision (\d+)", line):
            decision = m.group(1)
        if line.startswith("serving on"):
            break
    assert decision, "the demo printed no decision"
    browser = open_browser()
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
    browser.get(f"http://127.0.0.1:{port}/")
    wait = WebDriverWait(browser, 40)
    wait.until(lambda b: len(b.find_elements(By.CSS_SELECTOR, "#heat td[title]")) == 4 * 12)
    assert browser.find_element(By.ID, "policy").text == "amro_s"
    assert "3,000" in browser.find_element(By.ID, "figures").text, browser.find_element(By.ID, "figures").text
    assert len(browser.find_elements(By.CSS_SELECTOR, "#agents tr")) == 13
    for chart in ("traffic", "quality", "cost", "latency"):
        wait.until(lambda b, c=chart: b.find_element(By.CSS_SELECTOR, f"#{c} path").get_attribute("d"))
    assert len(browser.find_elements(By.CSS_SELECTOR, "#paths tr")) == 7

    box = browser.find_element(By.ID, "id")
    box.send_keys("nonsense")
    browser.find_element(By.CSS_SELECTOR, "#ask button").click()
    wait.until(lambda b: "is no decision's number" in b.find_element(By.ID, "why").text)
    box.clear()
    box.send_keys(decision)
    browser.find_element(By.CSS_SELECTOR, "#ask button").click()
    wait.until(lambda b: f"Decision {decision}" in b.find_element(By.ID, "why").text)
    rows = browser.find_elements(By.CSS_SELECTOR, "#why tr")
    assert len(rows) == 13, len(rows)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#why tr.chosen")) == 1
    time.sleep(1.2)  # one refresh more: what was explained stays
    assert f"Decision {decision}" in browser.find_element(By.ID, "why").text
    browser.save_screenshot(os.path.join(out, "page.png"))
    errors = [e for e in browser.get_log("browser") if e["level"] == "SEVERE" and "favicon" not in e["message"] and "400" not in e["message"]]
    assert not errors, errors
    browser.set_window_size(500, 1000)
    time.sleep(0.3)
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} px wider than a phone"
    browser.save_screenshot(os.path.join(out, "page-phone.png"))

    import urllib.request
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    assert re.search(r"^sluice_decisions_total 3000$", metrics, re.M), metrics
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").status == 200
    server.kill()
    server.wait()
    wait.until(lambda b: b.find_element(By.ID, "lost").is_displayed())
    print("page: heat map, charts, agents, explanation, errors and phone width are as they should be;", os.path.join(out, "page.png"))
finally:
    if browser:
        browser.quit()
    server.kill()
