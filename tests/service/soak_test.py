#!/usr/bin/env python3
"""A server among clients of which many mean harm: some never read, some connect and say nothing, some speak something else,
some reconnect all the time. Its memory must stay flat, its probes quick, and the others must be served.
Usage: soak_test.py SLUICE [SECONDS [CLIENTS]]; 8 seconds and 200 clients, unless they are given. Prints what it saw.
Exit status 77: pyzmq is missing."""
import atexit
import json
import multiprocessing
import os
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

try:
    import zmq
except ImportError:
    print("skipped: python3-zmq is not installed")
    sys.exit(77)

sluice = sys.argv[1]
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 8
clients = int(sys.argv[3]) if len(sys.argv) > 3 else 200
resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
random.seed(1)
stop = threading.Event()

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

port, http = free_port(), free_port()
work = tempfile.mkdtemp(prefix="sluice-soak-")
with open(f"{work}/team.textproto", "w") as f:
    f.write(f'endpoint: "tcp://127.0.0.1:{port}" http {{ port: {http} }} task: "math" state {{ sqlite: "{work}/s.db" }}\n'
            'stage { agent { id: "small" cost_usd: 0.001 } agent { id: "large" cost_usd: 0.01 } }')
server = subprocess.Popen([sluice, "serve", "--config", f"{work}/team.textproto", "--quiet"], stdout=subprocess.PIPE, text=True)
server.stdout.readline()

def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])

def field(number, body):
    return varint(number << 3 | 2) + varint(len(body)) + body

# Request { version: 1, request_id: n, route { queries { task: "math" } } }
def route(n):
    return b"\x08\x01\x10" + varint(n) + field(10, field(1, field(1, b"math")))

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
READY = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
HELLO = GREETING + b"\x04" + bytes([len(READY)]) + READY

def connect_to(where):
    s = socket.create_connection(("127.0.0.1", where), timeout=5)
    s.settimeout(0.2)
    return s

def connect():
    return connect_to(port)

def greet(s):
    """What a client may send follows what the server greets with: 64 bytes, then its READY."""
    s.sendall(HELLO)
    heard = b""
    while len(heard) < 64 + 2:
        piece = s.recv(4096)
        if not piece:
            raise OSError("turned away")
        heard += piece
    return heard


def never_reads():
    """Asks and asks, and leaves the answers where they are. It is cut off in the end, and comes back."""
    asked = 0
    message = route(7)
    frame = b"\x00" + bytes([len(message)]) + message
    while not stop.is_set():
        try:
            with connect() as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                greet(s)
                while not stop.is_set():
                    s.sendall(frame * 64)
                    asked += 64
                    time.sleep(0.01)
        except OSError:
            time.sleep(0.05)
    return asked

def says_nothing(where):
    open_ones = []
    while not stop.is_set():
        try:
            open_ones.append(socket.create_connection(("127.0.0.1", where), timeout=5))
        except OSError:
            pass
        if len(open_ones) > 20:
            open_ones.pop(0).close()
        time.sleep(0.2)

def speaks_otherwise():
    while not stop.is_set():
        try:
            with connect() as s:
                s.sendall(random.choice([b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(200), HELLO + os.urandom(300),
                                         GREETING[:20], b"\x01\x00", HELLO + b"\x02" + struct.pack(">Q", 1 << 60)]))
                time.sleep(0.02)
        except OSError:
            time.sleep(0.02)

def reconnects():
    while not stop.is_set():
        try:
            with connect() as s:
                message = route(1)
                greet(s)
                s.sendall(b"\x00" + bytes([len(message)]) + message)
                s.recv(4096)
        except OSError:
            pass
        time.sleep(0.01)

def descriptors_run_out():
    """With 48 descriptors and 80 connections the server turns some away, and does not spin."""
    own = free_port()
    path = f"{work}/few.textproto"
    with open(path, "w") as f:
        f.write(f'endpoint: "tcp://127.0.0.1:{own}" task: "math" stage {{ agent {{ id: "a" }} }}')
    few = subprocess.Popen([sluice, "serve", "--config", path, "--quiet"], stdout=subprocess.PIPE, text=True,
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48)))
    atexit.register(few.kill)
    few.stdout.readline()

    def cpu_s():
        with open(f"/proc/{few.pid}/stat") as f:
            return sum(map(int, f.read().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")

    crowd = []
    for _ in range(80):
        s = socket.create_connection(("127.0.0.1", own), timeout=5)
        s.sendall(HELLO)
        crowd.append(s)
    time.sleep(0.5)
    begin = cpu_s()
    time.sleep(2)
    used = (cpu_s() - begin) / 2
    for s in crowd:
        s.close()
    time.sleep(0.3)
    with connect_to(own) as s:
        message = route(1)
        answer = greet(s)
        s.sendall(b"\x00" + bytes([len(message)]) + message)
        until = time.monotonic() + 5
        while len(answer) < 150 and time.monotonic() < until:
            try:
                answer += s.recv(4096)
            except OSError:
                pass
    few.terminate()
    few.wait(15)
    assert used < 0.2, f"{used:.2f} of a CPU while nothing is asked"
    assert len(answer) >= 150, f"not served when the others had gone: {answer}"
    return used

served, late = 0, 0

def well_behaved(n):
    """n clients of one thread: each asks, waits for its answer, asks again some time later."""
    global served, late
    context = zmq.Context()
    poller, due = zmq.Poller(), []
    for i in range(n):
        s = context.socket(zmq.DEALER)
        s.linger = 0
        s.connect(f"tcp://127.0.0.1:{port}")
        poller.register(s, zmq.POLLIN)
        due.append([time.monotonic() + random.random(), s, i])
    waiting = {}
    while not stop.is_set():
        now = time.monotonic()
        for d in due:
            if d[0] <= now and d[1] not in waiting:
                d[1].send(route(d[2] + 1))
                waiting[d[1]] = now
                d[0] = now + 0.5 + random.random()
        for s, _ in poller.poll(20):
            s.recv()
            begin = waiting.pop(s, None)
            if begin is not None:
                served += 1
                late += time.monotonic() - begin > 1
    context.destroy(0)

def probe(ended, results):
    """In a process of its own: what is measured is the server, not this script's threads."""
    times = []
    while not ended.is_set():
        for path in ("healthz", "readyz"):
            begin = time.monotonic()
            try:
                ok = urllib.request.urlopen(f"http://127.0.0.1:{http}/{path}", timeout=10).status == 200
            except OSError:
                ok = False
            times.append(time.monotonic() - begin if ok else 10.0)
        time.sleep(0.1)
    results.put(times)


def memory_mib():
    with open(f"/proc/{server.pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) / 1024

atexit.register(server.kill)
crowded_cpu = descriptors_run_out()
bad = max(4, clients // 10)
jobs = [(well_behaved, (clients - 2 * bad,))] + [(never_reads, ())] * (bad // 2) + [(reconnects, ())] * (bad // 4)
jobs += [(speaks_otherwise, ())] * (bad // 4) + [(says_nothing, (port,))] * (bad // 4) + [(says_nothing, (http,))] * (bad // 4)
ended, results = multiprocessing.Event(), multiprocessing.Queue()
prober = multiprocessing.Process(target=probe, args=(ended, results), daemon=True)
prober.start()
threads = [threading.Thread(target=f, args=a, daemon=True) for f, a in jobs]
for t in threads:
    t.start()
begin, memory = time.monotonic(), []
while time.monotonic() - begin < seconds:
    time.sleep(min(1, seconds / 8))
    memory.append(memory_mib())
    if sys.stderr.isatty():
        print(f"\r{time.monotonic() - begin:.0f} s, {memory[-1]:.0f} MiB, {served} answers\033[K", end="", file=sys.stderr)
ended.set()
probes = results.get(timeout=30)
stop.set()
for t in threads:
    t.join(15)
stopping = time.monotonic()
server.send_signal(signal.SIGTERM)
server.wait(30)
times = sorted(probes)
quarter = len(memory) // 4
early, end = max(memory[quarter:2 * quarter] or memory), max(memory[-quarter:] or memory)
result = {"clients": clients, "hostile_threads": len(jobs) - 1, "seconds": seconds, "answers": served, "later_than_a_second": late,
          "memory_mib": {"second_quarter": round(early, 1), "last_quarter": round(end, 1), "most": round(max(memory), 1)},
          "probes": len(times), "probe_ms": {"p50": round(times[len(times) // 2] * 1e3, 1), "p99": round(times[len(times) * 99 // 100] * 1e3, 1),
                                             "most": round(times[-1] * 1e3, 1)},
          "cpu_without_descriptors": round(crowded_cpu, 3), "seconds_to_stop": round(time.monotonic() - stopping, 2)}
print(json.dumps(result))
assert server.returncode == 0, server.returncode
assert served > 0 and late * 20 < served, (served, late)
assert end < early * 1.15 + 8, "memory grows"
assert times[-1] < 5, "a probe waited"
