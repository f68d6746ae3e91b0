"""Client of `sluice serve`: pyzmq and protobuf, nothing else (Debian: python3-zmq python3-protobuf).

    from sluice_client import Client
    client = Client()
    decision = client.route(task="math")
    client.feedback(decision, quality=1.0, cost_usd=0.004, latency_s=2.1)

The message classes come from api/proto by protoc: found where SLUICE_PROTO points, beside this file, or made there by
`protoc --python_out=. -I api/proto sluice/v1/sidecar.proto`. One client a thread.
"""
import os
import sys
import time

import zmq

sys.path.insert(0, os.environ.get("SLUICE_PROTO", os.path.dirname(os.path.abspath(__file__))))
from sluice.v1 import sidecar_pb2 as pb  # noqa: E402


class SluiceError(Exception):
    """What the server answered instead. `code` is a sluice.v1.Code; `retry` says whether sending again later may help."""

    def __init__(self, code, text):
        super().__init__(f"{pb.Code.Name(code)}: {text}")
        self.code, self.text = code, text
        self.retry = code in (pb.OVERLOADED, pb.RATE_LIMITED, pb.UNAVAILABLE, pb.DEADLINE_EXCEEDED)


def default_endpoint():
    """Where `sluice serve` listens when its configuration names no endpoint."""
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    return f"ipc://{folder if folder.startswith('/') else f'/tmp/sluice-{os.getuid()}'}/sluice.sock"


class Client:
    """timeout_s: of one try. tries: of what may be repeated safely (everything but route and set_policy).
    server_key, public_key, secret_key: CURVE keys, Z85 text; all three or none.
    A call never takes longer than its tries: what was not answered in time is taken back, and does not reach a server
    that comes up later."""

    def __init__(self, endpoint=None, timeout_s=2.0, tries=3, server_key=None, public_key=None, secret_key=None):
        keys = (server_key, public_key, secret_key)
        if any(keys) and not all(keys):
            raise ValueError("server_key, public_key and secret_key: encryption needs all three, without them all goes in the clear")
        self.endpoint = endpoint or default_endpoint()
        self.timeout_ms, self.tries, self._next, self._keys = int(timeout_s * 1000), tries, 1, keys
        self._connect()

    def _connect(self):
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndtimeo = self.timeout_ms
        if all(self._keys):
            self._socket.curve_serverkey, self._socket.curve_publickey, self._socket.curve_secretkey = (k.encode() for k in self._keys)
        self._socket.connect(self.endpoint)

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def call(self, request):
        """Sends a pb.Request, returns its pb.Response. Raises SluiceError, or TimeoutError when nobody answers."""
        once = request.WhichOneof("body") in ("route", "set_policy")
        for _ in range(1 if once else self.tries):
            request.version, request.request_id = 1, self._next
            request.deadline_unix_ms = int(time.time() * 1000) + self.timeout_ms  # what is given up is not done later
            self._next += 1
            until = time.monotonic() + self.timeout_ms / 1000
            try:
                self._socket.send(request.SerializeToString())
            except zmq.Again:
                pass  # the queue is full: nobody has read from it
            while self._socket.poll(max(0, int(1000 * (until - time.monotonic())))):
                response = pb.Response.FromString(self._socket.recv())
                if response.request_id != request.request_id:
                    continue  # of a try that was given up
                if response.HasField("error"):
                    raise SluiceError(response.error.code, response.error.text)
                return response
            # What still waits in the socket goes with it.
            self.close()
            self._connect()
        raise TimeoutError(f"{self.endpoint}: no answer in {self.timeout_ms} ms")

    def route(self, task="", intent=(), text="", features=(), exclude=(), max_cost_usd=0.0, unit="", tag=(), session="", previous=b""):
        """-> pb.Decision: .agents (one a stage), .fallbacks (ranked, one list a stage), .id, .propensity, .receipt."""
        [d] = self.route_batch([dict(task=task, intent=intent, text=text, features=features, exclude=exclude, max_cost_usd=max_cost_usd, unit=unit,
                                     tag=tag, session=session, previous=previous)])
        if d.HasField("error"):
            raise SluiceError(d.error.code, d.error.text)
        return d

    def route_batch(self, queries):
        """Queries as dicts of route's arguments -> list of pb.Decision, one a query. One that could not be decided has
        .error and HasField("error"); the others are made and count."""
        request = pb.Request()
        for q in queries:
            request.route.queries.add(**q)
        return list(self.call(request).route.decisions)

    def feedback(self, decision, quality=None, cost_usd=0.0, latency_s=0.0, accepted=None, failed_agents=(), reports=()):
        """Returns once the outcome is kept: True when it was new, False when it was there already.
        quality: None says what it cost and not how good it was, and a grade may follow.
        reports: of each call, as dicts of pb.AgentReport's fields: agent, failed, latency_s, cost_usd, why."""
        request = pb.Request()
        outcome = request.feedback.outcomes.add(receipt=decision.receipt, cost_usd=cost_usd, latency_s=latency_s)
        if quality is not None:
            outcome.quality = quality
        if accepted is not None:
            outcome.accepted = accepted
        for agent in failed_agents:
            outcome.agents.add(agent=agent, failed=True)
        for report in reports:
            outcome.agents.add(**report)
        result = self.call(request).feedback.results[0]
        if result.status == pb.FeedbackResult.REJECTED:
            raise SluiceError(pb.INVALID_ARGUMENT, result.reason)
        return result.status == pb.FeedbackResult.APPLIED

    def explain(self, decision_id):
        """-> pb.ExplainResponse: .stages of .candidates with .tau, .eta, .p, .blocked, .chosen."""
        request = pb.Request()
        request.explain.decision_id = decision_id
        return self.call(request).explain

    def stats(self):
        """-> pb.StatsResponse."""
        request = pb.Request()
        request.stats.SetInParent()
        return self.call(request).stats
