"""The environment that the pool's processes start with: an allowlist, because Ray hands it on to every team's
jobs.

What the operator's shell holds (cloud keys, tokens) must not reach other people's code; `up --pass-env NAME`
lets one more variable through on purpose.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moorage.cluster import haproxy
from moorage.cluster.paths import ClusterPaths

HAPROXY = "haproxy"
"""The folder of HAProxy's files in the pool's home."""
_NAMES = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "TZ",
    "TMPDIR",
    "TERM",
    "VIRTUAL_ENV",
    "PYTHONPATH",
)
_PREFIXES = (
    "LC_",
    "LD_LIBRARY_",
    "RAY_",
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "CUDA_",
    "NCCL_",
    "NVIDIA_",
    "TORCH_",
    "DS_",
)
_NEVER = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_",
    "RAY_JOB_",
    "RAY_NAMESPACE",
    "RAY_RUNTIME_ENV",
    "RAY_CLOUD",
)

_RAY_DEFAULTS = {
    # A slow machine needs longer than Ray's 60 s to start many workers at once.
    "RAY_worker_register_timeout_seconds": "300",
    # A raylet that was killed refuses each check at once: noticed in 2.5 s. One that is slow has Ray's own patience
    # (five times 10 s).
    "RAY_health_check_period_ms": "500",
    # Do not fill a small machine with idle workers before anybody asked.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


def plain_environment(given: Mapping[str, str] | None = None, passed: Iterable[str] = ()) -> dict[str, str]:
    """What of `given` (default: ours) a child may see."""
    source, more = os.environ if given is None else given, set(passed)
    kept = {
        name: value
        for name, value in source.items()
        if name in more or name in _NAMES or (name.startswith(_PREFIXES) and not name.startswith(_NEVER))
    }
    # A job's `python` must be the interpreter that has Ray and Moorage, whether or not `up` ran in its venv.
    return kept | {
        "PATH": os.pathsep.join(filter(None, (str(Path(sys.executable).parent), kept.get("PATH"))))
    }


def ray_environment(
    paths: ClusterPaths, *, local: bool, given: Mapping[str, str] | None = None, passed: Iterable[str] = ()
) -> dict[str, str]:
    """For processes that are, or talk to, this Ray cluster. `local`: every port of Ray binds to loopback."""
    environment = _RAY_DEFAULTS | plain_environment(given, passed)
    if paths.ray_token.exists():
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(paths.ray_token)}
    if local:
        # Despite its name this is Ray's switch for "loopback only", on Linux too.
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return environment


def serve_environment(paths: ClusterPaths, settings: Mapping[str, Any]) -> dict[str, str]:
    """What Serve's own HTTP proxy needs to know, from the pool's settings: nothing for Ray's default (`python`)."""
    if settings.get("serve_proxy") != "haproxy":
        return {}
    ports = settings["haproxy_metrics_port"], settings["haproxy_stats_port"]
    return haproxy.environment(paths.root / HAPROXY, *ports)
