#!/usr/bin/env python3
"""Opens the sidecar's page in headless Chromium while a demo feeds it, clicks through it, keeps screenshots.
Usage: page_test.py SLUICE LOG OUT_FOLDER. Exit status 77: no browser here."""
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

from browser import open_browser

sluice, log, out = sys.argv[1:]
page = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../runtime/service/page.html")


def agent(name, **more):
    return dict(agent=name, chosen="4", in_flight=0, latency_s=1, quality=0.5, cost_usd=1, failures="3", breaker="closed", over_budget=False,
                breaker_why="", breaker_ends_in_s=0) | more


def metric(name, mean, gain, half):
    return dict(metric=name, mean=mean, gain=gain, half_interval=half, variance_kept=1)


# Answers of a server that has everything at once.
CANNED = {
    "/api/stats": dict(
        policy="ants", snapshot="7", snapshot_age_s=0.1, decisions="9", feedbacks="8", mean_quality=0.5, mean_cost_usd=0.1, decide_p50_us=3, decide_p99_us=9,
        duplicates="0", rejected="0", malformed="0", overloaded="0", rate_limited="0", durability="power loss", paths=[], last_reload_error="line 3: <b>no</b>",
        agents=[agent("small"), agent("large<i>", breaker="open", breaker_why="HTTP 503 <script>", breaker_ends_in_s=21)],
        budgets=[dict(name="team-a", period="day", limit_usd=10, spent_usd=4, reserved_usd=2, ends_in_s=7200),
                 dict(name="key bob", period="hour", limit_usd=1, spent_usd=0.9, reserved_usd=0.2, ends_in_s=60)]),
    "/api/heatmap": dict(policy="ants", tasks=[]),
    "/api/history": dict(points=[dict(unix_ms=str(1000 * i), decisions=i * 37 % 100, feedbacks=i % 3, quality=0.4 + 0.1 * (i % 5), cost_usd=0.01 * (i % 7), latency_s=2 + i % 4)
                                 for i in range(240)]),
    "/api/experiment": dict(
        name="spring", sample_ratio_p=0.4, readable=True, units_left_out="0", shadows=[dict(policy="thompson", decisions="100", same="62")],
        arms=[dict(policy="paper", weight=1, units="100", outcomes="120", p=1, stopped="", metrics=[metric("QUALITY", 0.7, 0, 0), metric("COST_USD", 0.01, 0, 0)]),
              dict(policy="ants", weight=1, units="98", outcomes="110", p=0.03, stopped="", metrics=[metric("QUALITY", 0.75, 0.05, 0.04), metric("COST_USD", 0.012, 0.002, "Infinity")]),
              dict(policy="risky", weight=1, units="9", outcomes="9", p=0.5, stopped="COST_USD", metrics=[metric("QUALITY", 0.5, -0.2, 0.1), metric("COST_USD", 0.1, 0.09, 0.01)])]),
}


class Canned(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path == "/" or self.headers.get("Authorization") == "Bearer good"
        body = open(page, "rb").read() if self.path == "/" else json.dumps(
            CANNED.get(self.path, {}) if known else dict(error=dict(code="UNAUTHENTICATED", message="no key", retry_after_s=0))).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/html" if self.path == "/" else "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def look_at_canned(browser, wait, by):
    """Budgets, breakers, an experiment, axes, and the key that a page with keys asks for."""
    canned = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Canned)
    threading.Thread(target=canned.serve_forever, daemon=True).start()
    browser.set_window_size(1400, 1500)
    browser.get(f"http://127.0.0.1:{canned.server_port}/")
    wait.until(lambda b: b.find_element(by.ID, "bearer").is_displayed())
    assert browser.find_element(by.ID, "lost").text == "no key"
    browser.find_element(by.ID, "bearer").send_keys("good")
    browser.find_element(by.CSS_SELECTOR, "#key button").click()
    wait.until(lambda b: len(b.find_elements(by.CSS_SELECTOR, "#budgets tr")) == 3)
    text = {part: browser.find_element(by.ID, part).text for part in ("budgets", "breakers", "arms", "experiment", "durability", "reload")}
    assert "team-a a day" in text["budgets"] and "2 h" in text["budgets"], text["budgets"]
    assert len(browser.find_elements(by.CSS_SELECTOR, "#budgets .full")) == 1
    assert "large<i>" in text["breakers"] and "HTTP 503 <script>" in text["breakers"] and "21 s" in text["breakers"] and "small" not in text["breakers"], text["breakers"]
    assert text["experiment"] == "spring" and "0.75 +0.05 ± 0.04" in text["arms"] and "± ∞" in text["arms"] and "stopped by COST_USD" in text["arms"], text["arms"]
    assert "62 % of 100 decisions" in text["arms"], text["arms"]
    assert "power loss" in text["durability"] and "<b>no</b>" in text["reload"], text
    for chart, unit in (("traffic", "a second"), ("quality", "0 to 1"), ("cost", "USD"), ("latency", "seconds")):
        # In one step: the page draws them anew every second.
        labels = browser.execute_script("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", f"#{chart} text")
        assert unit in labels and "now" in labels and "4 min ago" in labels and "0" in labels, (chart, labels)
    browser.save_screenshot(os.path.join(out, "page-all.png"))
    browser.set_window_size(500, 1000)
    time.sleep(0.3)
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"with everything, the page is {wide} px wider than a phone"
    canned.shutdown()


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
        wait.until(lambda b, c=chart: b.execute_script("return document.querySelector(arguments[0])?.getAttribute('d')", f"#{c} path"))
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
    look_at_canned(browser, wait, By)
    print("page: heat map, charts, agents, explanation, errors, budgets, breakers, experiment, key and phone width are as they should be;", os.path.join(out, "page.png"))
finally:
    if browser:
        browser.quit()
    server.kill()
