"""Why a job waits: the rule that binds, as data and in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from moorage.scheduling.amounts import ANY_MODEL, gpus
from moorage.scheduling.spans import span


class ReasonCode(StrEnum):
    """Which rule holds a job back. Stable: people filter on it."""

    TEAM_LIMIT = "team-limit"
    TEAM_QUOTA = "team-quota"
    TEAM_UNKNOWN = "team-unknown"
    POOL_FULL = "pool-full"
    FRAGMENTED = "fragmented"
    TOPOLOGY = "topology"
    SPREAD = "spread"
    POWER_CAP = "power-cap"
    NO_DEVICE = "no-device"
    BEHIND = "behind"
    BUDGET = "budget"
    RESERVED = "reserved"
    DELAYS = "delays"
    LEAVING = "leaving"
    NODE_ASKED = "node-asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a job waits: the binding rule, its figures (milli-GPU), and what would free it."""

    code: ReasonCode
    team: str = ""
    gpu_model: str = ANY_MODEL
    asked: int = 0
    held: int = 0
    allowed: int = 0
    free: int = 0
    holders: tuple[str, ...] = ()
    unit: str = ""
    """What `held` and `allowed` count when not milli-GPU: thousandths of it."""
    period: str = ""
    until_ns: int = 0
    """When the budget's period ends."""
    note: str = ""
    """What the figures do not say: which constraints rule nodes out, or what the limit that binds says."""
    place: str = ""
    """Where `free` was counted, if not in the whole pool."""
    starts_in_ns: int = 0
    """RESERVED: from the time of the plan, at the latest."""
    late_ns: int = 0
    """By how much it will miss its deadline, started now, if it runs as long as it may."""

    def text(self) -> str:
        """One sentence for people, ending in what would free the job."""
        beyond = self.code is ReasonCode.TEAM_LIMIT and self.asked > self.allowed
        said = (_BEYOND_LIMIT if beyond else _SENTENCES[self.code]).format(
            team=self.team,
            model="" if self.gpu_model == ANY_MODEL else f" {self.gpu_model}",
            asked=gpus(self.asked),
            held=gpus(self.held),
            allowed=gpus(self.allowed),
            free=gpus(self.free),
            unit=self.unit,
            period="today" if self.period == "day" else f"this {self.period}",
            until=f"{np.datetime64(self.until_ns // 10**9, 's').astype('M8[m]')} UTC".replace("T", " ", 1),
            first=self.holders[0] if self.holders else "a running job",
            holders=", ".join(self.holders) or "other jobs",
            end="ends" if len(self.holders) == 1 else "end",
            note=f"; {self.note}" if self.note else "",
            limit=self.note,
            place=self.place or "in the pool",
            on=f" {self.place}" if self.place else "",
            span=span(self.starts_in_ns),
        )
        if not self.late_ns:
            return said
        return f"{said}; its deadline can no longer be met if it runs as long as it may: {span(self.late_ns)} late"


_BEYOND_LIMIT = (
    "asks for {asked}{model} GPUs, and the limit of team {team} is {allowed}; starts when the limit is raised"
)
_SENTENCES: dict[ReasonCode, str] = {
    ReasonCode.TEAM_LIMIT: (
        "team {team} holds {held} of its limit of {allowed}{model} GPUs and this job asks for {asked}; "
        "starts when {holders} of the team {end}, or when the limit is raised"
    ),
    ReasonCode.TEAM_QUOTA: (
        "team {team} holds {held} of the {allowed}{model} GPUs it may use now (quota plus what others lend) "
        "and this job asks for {asked}; starts when {holders} {end}, or when more is lent"
    ),
    ReasonCode.TEAM_UNKNOWN: "team {team} is not in the quota tree; add it to the teams file",
    ReasonCode.POOL_FULL: (
        "asks for {asked}{model} GPUs, {free} are free {place}; starts when {holders} {end}"
    ),
    ReasonCode.FRAGMENTED: (
        "asks for {asked}{model} GPUs; {free} are free{on} but not together as its tasks need them "
        "(device share, device memory, CPU or memory per node); starts when {holders} {end}"
    ),
    ReasonCode.TOPOLOGY: (
        "asks for {asked}{model} GPUs within one {limit}; {free} are free {place}, but in no {limit} is there room for "
        "the whole gang; starts when {holders} {end}"
    ),
    ReasonCode.SPREAD: (
        "asks for {asked}{model} GPUs with at most {limit}; {free} are free {place}, but not so far apart; starts when "
        "{holders} {end}"
    ),
    ReasonCode.POWER_CAP: (
        "asks for {asked}{model} GPUs; {free} are free {place}, but more in use would exceed a power cap: {limit}; "
        "starts when {holders} {end}, or when a cap is raised"
    ),
    ReasonCode.NO_DEVICE: (
        "the nodes that are up could not hold its tasks even idle ({asked}{model} GPUs asked{note}); "
        "starts when a node that can joins or comes back"
    ),
    ReasonCode.BUDGET: (
        "team {team} has spent {held} of its {allowed} {unit} {period}; "
        "starts when the period ends at {until} or the budget is raised"
    ),
    ReasonCode.RESERVED: (
        "asks for {asked}{model} GPUs, {free} are free; starts in {span} at the latest, by reservation on {limit}"
    ),
    ReasonCode.DELAYS: (
        "there is room, but to start now would delay {first}, which has a reservation; "
        "starts after that, or sooner with a shorter max_runtime"
    ),
    ReasonCode.LEAVING: (
        "asks for {asked}{model} GPUs, and room is being made for it: {holders} told to leave; "
        "starts when that has ended, in {span} at the latest"
    ),
    ReasonCode.NODE_ASKED: (
        "asks for {asked}{model} GPUs, {free} are free; waits for a node that was asked for ({limit}); "
        "starts when it has joined"
    ),
    ReasonCode.BEHIND: "waits behind {first}, which has waited longest and needs the room that is free",
}
