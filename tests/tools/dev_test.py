#!/usr/bin/env python3
"""./dev and a package manager that another program has locked: waits, gives up in the end, and fails at once
when something else is wrong. The package manager is a stand-in. Usage: dev_test.py SOURCE"""
import os
import subprocess
import sys
import tempfile
import time

if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit(__doc__)
source = os.path.abspath(sys.argv[1])

# Fails as often as the file `refusals` says, with the text of the file `why`.
APT = """#!/bin/sh
left=$(cat "$STATE/refusals")
echo "$@" >> "$STATE/calls"
[ "$left" -eq 0 ] && exit 0
echo $((left - 1)) > "$STATE/refusals"
cat "$STATE/why" >&2
exit 100
"""
LOCKED = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"


def dev(refusals, why, lock_seconds):
    with tempfile.TemporaryDirectory() as state:
        programs = {
            "apt-get": APT,
            "dpkg-query": "#!/bin/sh\nexit 1\n",
            "sudo": '#!/bin/sh\nexec "$@"\n',
            "git": "#!/bin/sh\nexit 0\n",
            "clang-format-16": "#!/bin/sh\nexit 0\n",
        }
        for name, text in programs.items():
            path = os.path.join(state, name)
            with open(path, "w") as f:
                f.write(text)
            os.chmod(path, 0o755)
        for name, text in {"refusals": str(refusals), "why": why, "calls": ""}.items():
            with open(os.path.join(state, name), "w") as f:
                f.write(text)
        env = {**os.environ, "PATH": state + ":/usr/bin:/bin", "STATE": state, "LOCK_SECONDS": str(lock_seconds)}
        begin = time.monotonic()
        r = subprocess.run([os.path.join(source, "dev"), "fmt", "--check"], env=env, capture_output=True, text=True)
        seconds = time.monotonic() - begin
        with open(os.path.join(state, "calls")) as f:
            return r.returncode, r.stderr, seconds, f.read()


code, said, seconds, calls = dev(0, "", 60)
assert code == 0, said
assert "update" in calls and "install" in calls and "clang-format-16" in calls, calls
assert "waiting" not in said, said

code, said, seconds, calls = dev(2, LOCKED, 60)
assert code == 0, said
assert said.count("waiting up to 60 s") == 1, said
assert calls.count("update") == 3, calls

code, said, seconds, calls = dev(1000, LOCKED, 2)
assert code != 0
assert "stayed locked for 2 s" in said and "held by process 7" in said, said
assert 2 <= seconds < 20, seconds

code, said, seconds, calls = dev(1000, "E: Unable to locate package nothing", 60)
assert code != 0
assert "Unable to locate package nothing" in said and "waiting" not in said, said
assert calls.count("update") == 1, calls
print("dev: waits for a locked package manager, and for nothing else")
