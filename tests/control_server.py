"""The control plane's own process, as `moorage up` starts it, over a simulated pool that outlives it.

`python tests/control_server.py JOURNAL ARGUMENTS...`: the arguments are those of `python -m moorage.runtime.control`.
Several of these drive one pool when they name one journal. The pool keeps the machine's time; the control plane's wall
clock is off by the nanoseconds in the file `$MOORAGE_TEST_CLOCK`, read anew each time.

`python tests/control_server.py --nursery` forks one per line of JSON on its standard input: none has to import again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from moorage.runtime.control import __main__ as control
from moorage.runtime.control import clock, failpoints
from moorage.runtime.control.clock import SystemClock
from moorage.runtime.control.simbackend import SimBackend, SimNode

true_ns = time.time_ns


def wall_ns() -> int:
    """As the machine's clock would be if somebody set it."""
    file = os.environ.get("MOORAGE_TEST_CLOCK")
    return true_ns() + (int(Path(file).read_text().strip() or 0) if file else 0)


def serve(journal: str, arguments: list[str]) -> int:
    clock.time.time_ns = wall_ns
    nodes = [SimNode(name=f"node-{n}") for n in range(2)]
    return control.main(
        arguments, lambda home: SimBackend(nodes, SystemClock(true_ns), journal=Path(journal))
    )


def nursery() -> None:
    """{"start": [journal, ...], "environment": {}, "log": path} -> pid; {"poll": pid} -> exit status or null."""
    for line in sys.stdin:
        asked = json.loads(line)
        if "poll" in asked:
            done, status = os.waitpid(asked["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if done else None), flush=True)
            continue
        child = os.fork()
        if child == 0:
            code = 70
            try:
                log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.dup2(log, 2)
                os.dup2(2, 1)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.environ.update(asked["environment"])
                failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
                code = serve(asked["start"][0], asked["start"][1:])
            finally:
                os._exit(code)
        print(child, flush=True)
    with contextlib.suppress(ChildProcessError):
        os.kill(0, signal.SIGKILL)  # a group of its own: nobody outlives the test


if __name__ == "__main__":
    if sys.argv[1] == "--nursery":
        os.setpgid(0, 0)
        nursery()
    sys.exit(serve(sys.argv[1], sys.argv[2:]))
