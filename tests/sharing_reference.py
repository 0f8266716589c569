"""The order in which teams take turns, in plain Python and fractions: what the planner's kernels are compared with.

The pool is one node with room to spare of all but what a test makes scarce, so that whether a job fits is a sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from moorage.scheduling.model import WHOLE, JobRequest, TeamSpec

GPU = 0
"""Of the resources: milli-GPU; then milli-CPU, MiB, GPU MiB."""


@dataclass
class Pool:
    """`capacity` and what the teams' own jobs hold, by resource."""

    teams: Sequence[TeamSpec]
    capacity: tuple[int, ...]
    device_mib: int = 0
    held: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for team in self.teams:
            self.held.setdefault(team.name, [0] * len(self.capacity))

    def needs(self, request: JobRequest) -> list[int]:
        """Of a gang of workers that each hold whole devices or none."""
        shape, n = request.worker, request.workers
        gpu_mib = self.device_mib * shape.milli_gpu // WHOLE
        return [n * x for x in (shape.milli_gpu, shape.milli_cpu, shape.mib, gpu_mib)]

    def fits(self, request: JobRequest) -> bool:
        sums = [sum(held[r] for held in self.held.values()) for r in range(len(self.capacity))]
        return all(
            s + n <= c for s, n, c in zip(sums, self.needs(request), self.capacity, strict=True)
        ) and self.limited(request)

    def limited(self, request: JobRequest) -> bool:
        """Within the limit of its team and of every team above it."""
        by_name = {team.name: team for team in self.teams}
        at = request.team
        while at:
            team = by_name[at]
            limit = dict(team.limit).get("*")
            if limit is not None and self.total(at)[GPU] + self.needs(request)[GPU] > limit:
                return False
            at = team.parent
        return True

    def below(self, name: str) -> list[str]:
        """The team and all below it."""
        return [name] + [n for team in self.teams if team.parent == name for n in self.below(team.name)]

    def total(self, name: str) -> list[int]:
        return [sum(self.held[n][r] for n in self.below(name)) for r in range(len(self.capacity))]

    def own_quota(self, name: str) -> int:
        quota = {team.name: dict(team.quota).get("*", 0) for team in self.teams}
        return max(0, quota[name] - sum(quota[t.name] for t in self.teams if t.parent == name))

    def level(self, names: Sequence[str], past: Mapping[str, int]) -> Fraction:
        """The dominant share of some teams together, less their quotas; `past`: milli-GPU that count on top."""
        held = [sum(self.held[n][r] for n in names) for r in range(len(self.capacity))]
        gpus = self.capacity[GPU]
        less = Fraction(sum(self.own_quota(n) - past.get(n, 0) for n in names), gpus) if gpus else Fraction(0)
        return max(Fraction(h, c) for h, c in zip(held, self.capacity, strict=True) if c) - less

    def next(self, queues: Mapping[str, Sequence[JobRequest]], past: Mapping[str, int]) -> str | None:
        """Whose first job is tried next."""
        row = {team.name: i for i, team in enumerate(self.teams)}

        def best(parent: str) -> tuple[tuple[object, ...], str] | None:
            """(how it compares, the team) of the best below `parent`, its own jobs beside its children."""
            found = []
            for team in self.teams:
                if team.parent == parent and (sent := best(team.name)):
                    found.append(
                        (self._key(team, self.below(team.name), queues[sent[1]][0], past, row), sent[1])
                    )
                if team.name == parent and queues.get(parent):
                    found.append((self._key(team, [parent], queues[parent][0], past, row), parent))
            return min(found, default=None)

        won = best("")
        return won[1] if won else None

    def _key(
        self,
        team: TeamSpec,
        names: list[str],
        first: JobRequest,
        past: Mapping[str, int],
        row: dict[str, int],
    ) -> tuple[object, ...]:
        level = self.level(names, past) / max(1, team.weight)
        return (-first.priority, level, first.submitted_ns, row[first.team])


def start_order(
    pool: Pool, requests: Sequence[JobRequest], past: Mapping[str, int] | None = None
) -> list[str]:
    """The jobs that start, in order, where nobody has a quota: by turns, each tried once, none waited for."""
    ordered = sorted(requests, key=lambda r: (-r.priority, r.submitted_ns, r.job))
    queues: dict[str, list[JobRequest]] = {}
    for request in ordered:
        queues.setdefault(request.team, []).append(request)
    started = []
    while (team := pool.next(queues, past or {})) is not None:
        request = queues[team].pop(0)
        if pool.fits(request):
            pool.held[team] = [h + n for h, n in zip(pool.held[team], pool.needs(request), strict=True)]
            started.append(request.job)
    return started
