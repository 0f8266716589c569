"""What the front door may be told, with its limits, and where it finds Ray's dashboard and Serve."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

MIB = 1 << 20


def installed_ray_version() -> str:
    """The version of the installed Ray, read from its metadata: Ray itself is never imported here."""
    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        return "2.60.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Limits are bytes unless named otherwise.

    `max_package` bounds one uploaded package as sent, `max_unpacked` what it unpacks to, `max_spool` all of them
    together as sent; `max_body` every other
    request body except those proxied to endpoints (`max_endpoint_body`). `log_head` and `log_tail` are what
    `/api/jobs/<id>/logs` keeps of a longer log. `allowed_hosts` are host names (no port) that a request may
    name in Host and Origin. A package that no job needs is kept `package_keep_s` after its last use. `dashboard`
    and `serve` override what the home's `pool.json` says.
    """

    home: Path
    allowed_hosts: frozenset[str] = frozenset({"127.0.0.1", "localhost", "::1"})
    max_package: int = 200 * MIB
    max_unpacked: int = 2048 * MIB
    max_spool: int = 20_480 * MIB
    max_body: int = 1 * MIB
    max_endpoint_body: int = 64 * MIB
    log_head: int = 2 * MIB
    log_tail: int = 6 * MIB
    package_keep_s: float = 24 * 3600.0
    poll_s: float = 0.5
    max_lease_wait_s: float = 3600.0
    endpoint_cache_s: float = 2.0
    """How long the proxy believes a token's caller and an endpoint's address (`cache.py`); 0: not at all."""
    requests_per_s: float = 200.0
    """Of one caller, endpoints not counted; `request_burst` at once after a pause. 0: as many as it likes."""
    request_burst: int = 1000
    most_in_flight: int = 512
    """Calls to the control plane that are under way or wait for a thread; one more is told to come back (503)."""
    ray_dashboard: str = "admin"
    """Who may look at Ray's dashboard: `admin`, `everyone` (all teams see all jobs there) or `off`."""
    grafana: str = ""
    """Where the pool's Grafana is, for a link."""
    ray_version: str = field(default_factory=installed_ray_version)
    dashboard: str | None = None
    serve: str | None = None

    @property
    def access_log(self) -> Path:
        return self.home / "logs" / "access.log"

    @property
    def packages(self) -> Path:
        return self.home / "packages"

    def address(self, what: str) -> str | None:
        """The base URL of "dashboard" or "serve" now: Ray may come back elsewhere, so it is read each time."""
        fixed: str | None = getattr(self, what)
        if fixed:
            return fixed.rstrip("/")
        try:
            found = json.loads((self.home / "pool.json").read_text(encoding="utf-8")).get(what)
        except (OSError, ValueError, AttributeError):
            return None
        if not isinstance(found, str) or not found:
            return None
        return (found if "://" in found else f"http://{found}").rstrip("/")

    def ray_token(self) -> str | None:
        """Ray's cluster token; never logged, never sent to a client."""
        try:
            return (self.home / "ray.token").read_text(encoding="utf-8").strip() or None
        except OSError:
            return None
