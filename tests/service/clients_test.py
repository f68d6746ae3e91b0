#!/usr/bin/env python3
"""Runs the Python client, the C++ example client and the command line against one server.
Usage: clients_test.py SLUICE EXAMPLE_CLIENT CLIENT_FOLDER PROTO_FOLDER. Exit status 77: pyzmq or protobuf is missing."""
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

sluice, example, folder, proto = sys.argv[1:]
try:
    import google.protobuf  # noqa: F401
    import zmq  # noqa: F401
except ImportError:
    print("skipped: python3-zmq or python3-protobuf is not installed")
    sys.exit(77)
work = tempfile.mkdtemp(prefix="sluice-clients-")
subprocess.run(["protoc", f"--python_out={work}", f"-I{proto}", "sluice/v1/sidecar.proto"], check=True)
os.environ["SLUICE_PROTO"] = work
sys.path.insert(0, folder)
from sluice_client import Client, SluiceError, pb  # noqa: E402

endpoint = f"ipc://{work}/s"
with open(f"{work}/team.textproto", "w") as f:
    f.write(f'endpoint: "{endpoint}" task: "math" task: "code" state {{ sqlite: "{work}/state.db" }}\n'
            'stage { agent { id: "small" cost_usd: 0.001 } agent { id: "large" cost_usd: 0.01 } }')


def run(*args, code=0):
    done = subprocess.run(args, capture_output=True, text=True, timeout=30)
    assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


assert "1 stages, 1 policies" in run(sluice, "serve", "--config", f"{work}/team.textproto", "--check")
server = subprocess.Popen([sluice, "serve", "--config", f"{work}/team.textproto"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
try:
    assert endpoint in server.stdout.readline()
    with Client(endpoint) as c:
        decisions = c.route_batch([{"task": "math"}, {"intent": [0.25, 0.75]}, {}])
        assert len({d.id for d in decisions}) == 3 and all(d.agents[0] in ("small", "large") for d in decisions)
        assert c.feedback(decisions[0], quality=1, cost_usd=0.002) is True
        assert c.feedback(decisions[0], quality=0) is False
        assert abs(sum(x.p for x in c.explain(decisions[1].id).stages[0].candidates) - 1) < 1e-5
        assert c.stats().feedbacks == 1
        spent = c.route(task="math", tag=["team"], session="s", previous=decisions[0].receipt)
        assert c.feedback(spent, cost_usd=0.01, reports=[dict(agent=spent.agents[0], failed=True, why="HTTP 500", cost_usd=0.01)]) is True
        for bad in (lambda: c.route(task="poetry"), lambda: c.explain(10**12), lambda: c.feedback(decisions[1], quality=7)):
            try:
                bad()
            except SluiceError as e:
                assert not e.retry, e
            else:
                raise AssertionError("no error")
    try:
        Client("ipc:///tmp/nobody-is-here", timeout_s=0.1, tries=2).stats()
        raise AssertionError("no timeout")
    except TimeoutError as e:
        assert "nobody-is-here" in str(e)
    # A server that is down: every call ends in time, however many there were, and none of them runs when it comes up.
    down = f"ipc://{work}/later"
    with Client(down, timeout_s=0.05, tries=1) as c:
        began = time.monotonic()
        for _ in range(30):
            try:
                c.route(task="math")
                raise AssertionError("no timeout")
            except TimeoutError:
                pass
        assert time.monotonic() - began < 15
        with open(f"{work}/later.textproto", "w") as f:
            f.write(f'endpoint: "{down}" task: "math" stage {{ agent {{ id: "a" }} }}')
        late = subprocess.Popen([sluice, "serve", "--quiet", "--config", f"{work}/later.textproto"], stdout=subprocess.PIPE, text=True)
        try:
            assert down in late.stdout.readline()
            time.sleep(0.3)
            with Client(down) as fresh:
                assert fresh.stats().decisions == 0
        finally:
            late.kill()
    for keys in (dict(server_key="k"), dict(secret_key="k"), dict(public_key="k", secret_key="k")):
        try:
            Client(endpoint, **keys)
            raise AssertionError("in the clear")
        except ValueError as e:
            assert "all three" in str(e)
    assert "learned" in run(example, endpoint)
    at = ("--endpoint", endpoint)
    routed = run(sluice, "route", "--task", "code", "--exclude", "large", *at)
    assert "stage 1    small" in routed, routed
    receipt = re.search(r"receipt +(\S+)", routed).group(1)
    number = re.search(r"decision +(\d+)", routed).group(1)
    assert "kept (sqlite" in run(sluice, "feedback", "--receipt", receipt, "--quality", "0.9", *at)
    assert "nothing changed" in run(sluice, "feedback", "--receipt", receipt, "--quality", "0.9", *at)
    assert "excluded by the caller" in run(sluice, "explain", number, *at)
    assert "mean quality" in run(sluice, "top", "--once", *at)
    assert "* amro_s" in run(sluice, "policy", *at)
    assert "known: amro_s" in run(sluice, "policy", "nothing", *at, code=1)
    assert "is `sluice serve` running there?" in run(sluice, "explain", "1", "--endpoint", "ipc:///tmp/nobody-is-here", "--timeout-ms", "50", code=1)
    for lone in (("--secret-key", f"{work}/key"), ("--server-key", "x" * 40)):
        assert "encryption needs both" in run(sluice, "policy", *lone, *at, code=1)
    key = run(sluice, "keygen", f"{work}/key")
    assert os.stat(f"{work}/key").st_mode & 0o077 == 0 and len(open(f"{work}/key.pub").read().strip()) == 40, key
    assert "never overwritten" in run(sluice, "keygen", f"{work}/key", code=1)
    with open(f"{work}/queries.jsonl", "w") as f:
        for i in range(200):
            f.write('{"qid": "%d", "task": "%s", "text": "%s"}\n' % (i, ("math", "code")[i % 2], ("add %d and seven", "write a function %d in python")[i % 2] % i))
    assert "held-out accuracy 1.0000" in run(sluice, "intent", "train", "--in", f"{work}/queries.jsonl", "--out", f"{work}/intent.gguf", "--epochs", "5")
    with open(f"{work}/team.textproto", "a") as f:
        f.write(f' intent {{ model: "{work}/intent.gguf" }}')
    server.send_signal(signal.SIGHUP)
    for _ in range(100):
        time.sleep(0.02)
        routed = subprocess.run([sluice, "route", "--text", "write a function in python", *at], capture_output=True, text=True)
        if routed.returncode == 0:
            break
    number = re.search(r"decision +(\d+)", routed.stdout).group(1)
    explained = run(sluice, "explain", number, *at)
    assert float(re.search(r"code ([0-9.]+)", explained).group(1)) > 0.9, explained
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=15) == 0
    log = server.stderr.read()
    assert '"event":"draining"' in log and '"event":"stopped"' in log, log
    print("clients: Python, C++ and the command line agree with the server")
finally:
    server.kill()
