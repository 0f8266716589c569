"""pool.yaml: settings of one pool. Prices are micro-dollars per GPU-hour; every field has a default."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from moorage.configs import units
from moorage.configs.autoscaling import AutoscalingSettings
from moorage.configs.guard import Guard, GuardSettings
from moorage.configs.nodes import NodeRule, PowerSettings
from moorage.configs.problems import explain
from moorage.configs.section import Section
from moorage.configs.yamlio import load_mapping
from moorage.errors import InvalidRequest

ANY = "gpus"
_DATABASE = re.compile(r"postgresql://\S+/[^\s/]+")


def _dollars(value: Any) -> dict[str, int]:
    """{model: micro-dollars} from dollars per GPU-hour, at most six decimals."""
    if not isinstance(value, dict):
        value = {ANY: value}
    found = {}
    for model, price in value.items():
        try:
            micro = units.decimal(f"prices.{model}", price) * 10**6
        except InvalidRequest as error:
            raise ValueError(f"{model} = {price!r}: {error.why}") from None
        if not 0 <= micro <= Decimal(10) ** 12 or micro != micro.to_integral_value():
            raise ValueError(f"{model} = {price!r}: dollars per GPU-hour, 0 to 1000000, at most six decimals")
        found[str(model)] = int(micro)
    return found


def _rules(value: Any) -> Any:
    """A list, as YAML has it."""
    return tuple(value) if isinstance(value, list) else value


class PreemptionSettings(Section):
    """Whether running jobs are told to leave for others. Only jobs that said `preemptible: true` ever are."""

    where = "preemption"

    enabled: bool = True
    grace_s: int = Field(default=60, ge=0, le=86_400)
    """From the notice to the kill: time to write a checkpoint and leave."""
    least_run_s: int = Field(default=300, ge=0, le=7 * 86_400)
    """Who started or resumed a shorter time ago is not told to leave for a priority."""
    reclaim_waits: bool = False
    """Lent quota is taken back after that time only, too; else at any time."""


class ElasticSettings(Section):
    """Whether leases of running jobs that follow them are resized."""

    where = "elastic"

    enabled: bool = True
    settle_s: int = Field(default=120, ge=0, le=7 * 86_400)
    """Who started, grew or shrank a shorter time ago does not grow; who grew a shorter time ago gives workers up for a
    reclaim only."""


class PoolSettings(Section):
    """What an operator may set. Times are milliseconds where the name says so."""

    where = "the pool file"

    prices: Annotated[dict[str, int], BeforeValidator(_dollars)] = Field(default={ANY: 1_000_000})
    """Micro-dollars per GPU-hour by model; "gpus" is the price of models not named (written in dollars)."""
    package_limit_mib: int = Field(default=200, ge=1, le=511)
    """Largest working_dir upload. Ray holds less than 512 MiB in one piece."""
    spool_limit_mib: int = Field(default=20_480, ge=1, le=1 << 30)
    """All packages that the front door keeps, together. Those that no job needs go first."""
    infra_attempts: int = Field(default=3, ge=1, le=100)
    """Attempts lost to the infrastructure before a job is quarantined."""
    tick_ms: int = Field(default=500, ge=10, le=60_000)
    """Longest pause between two looks at the cluster."""
    start_deadline_ms: int = Field(default=10_000, ge=0, le=600_000)
    """How long a start waits for Ray to free devices that the ledger says are free."""
    lost_after_ms: int = Field(default=10_000, ge=0, le=600_000)
    """How long Ray may not know a started attempt before it counts as lost."""
    start_timeout_s: int = Field(default=900, ge=1, le=86_400)
    """How long Ray may take to run a started attempt, its environment's installation included, before it counts as
    lost."""
    requests_per_s: int = Field(default=200, ge=0, le=1_000_000)
    """Of one caller at the front door, endpoints not counted; five times as many at once after a pause. 0: no limit."""
    ray_dashboard: Literal["admin", "everyone", "off"] = "admin"
    """Who may look at Ray's dashboard through the front door, read-only. It shows the jobs of all teams."""
    grafana: str = Field(default="", pattern=r"^(https?://[^\s\"'<>]+)?$")
    """The address of a Grafana with the pool's boards; the page links to it."""
    max_pending: int = Field(default=10_000, ge=1, le=10_000_000)
    """Waiting jobs per team; above it submissions are refused."""
    packing: Literal["potential", "best-fit"] = "potential"
    """How tasks are packed onto nodes; "potential" takes over from best fit once the pool knows its mix of tasks."""
    backfill: Literal["easy", "conservative", "none"] = "easy"
    """Whom a job that starts out of turn may not delay: the first in line, all of the first hundred, or nobody."""
    nodes: Annotated[tuple[NodeRule, ...], BeforeValidator(_rules)] = ()
    """Labels, taints, region, spot and power of nodes by name, beside what Ray's labels say."""
    usage_half_life_h: int = Field(default=0, ge=0, le=87_600)
    """Hours in which what a team has used counts half in whose turn it is (168 = a week); 0 = it does not count."""
    topology: Annotated[tuple[str, ...], BeforeValidator(_rules)] = ()
    """Levels from the outermost, where names repeat within them: [zone, rack] makes `a/r1` and `b/r1` two racks."""
    power: PowerSettings = PowerSettings()
    """Power caps, and what devices are rated for."""
    preemption: PreemptionSettings = PreemptionSettings()
    """Who may be told to leave, and how long that takes."""
    elastic: ElasticSettings = ElasticSettings()
    """Which leases grow and shrink while their jobs run."""
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    """Nodes that the Ray cluster can start for the pool."""
    guard: Guard = GuardSettings()
    """What is done about GPUs held without a lease or beyond it."""
    takeover_s: int = Field(default=6, ge=2, le=3600)
    """A leader that is silent for so long is replaced by a standby, where there is one."""
    stuck_s: int = Field(default=600, ge=1, le=86_400)
    """A control plane whose loop does not get on for so long ends itself. One effect on Ray may take minutes."""
    front_door: str = ""
    """The URL by which jobs reach the front door, whoever leads; "" is this control plane's own address."""
    database: str = Field(default="", repr=False)
    """postgresql://user:password@host/name; "" is a SQLite file in the pool's home."""

    @field_validator("database")
    @classmethod
    def _postgresql(cls, value: str) -> str:
        if value and not _DATABASE.fullmatch(value):  # never quoted back: it may hold a password
            raise ValueError(
                "it must be postgresql://user@host/name, or left out for a SQLite file in the home"
            )
        return value

    def price(self, gpu_model: str) -> int:
        """Micro-dollars per GPU-hour of a model."""
        return self.prices.get(gpu_model, self.prices.get(ANY, 0))


def parse_pool(text: str, source: str = "pool.yaml") -> PoolSettings:
    """The settings that `text` holds; `InvalidRequest` with the path of each wrong field."""
    try:
        return PoolSettings.model_validate(load_mapping(text, source))
    except ValidationError as error:
        raise explain(error, source) from None


def load_pool(path: Path) -> PoolSettings:
    """The settings of a file; `InvalidRequest` also when it cannot be read."""
    try:
        return parse_pool(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"cannot read the pool file {path}", why=str(error), code="config-unreadable"
        ) from None
