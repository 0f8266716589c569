"""teams.yaml: the tree of teams with what is guaranteed, capped, lent and borrowed, in GPUs by model.

Amounts are a number (any model) or a mapping `{gpus: 4, L4: 2}`; "gpus" counts all models together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from moorage.configs import job, units
from moorage.configs.problems import explain, refuse_unknown
from moorage.configs.yamlio import load_mapping
from moorage.errors import InvalidRequest

ANY = "gpus"
MAX_POOL_GPUS = 1_000_000
MAX_TEAMS = 10_000
MAX_BUDGET = 10**12
"""GPU-hours, dollars."""


def _amounts(value: Any) -> dict[str, int]:
    """{"gpus" or a model: milli-GPU} from a number or a mapping."""
    if not isinstance(value, dict):
        value = {ANY: value}
    found = {}
    for model, amount in value.items():
        if not isinstance(model, str) or not model or len(model) > 64 or not model.isprintable():
            raise ValueError(f"{model!r} is not a GPU model; write 'gpus' for any")
        try:
            found[model] = units.milli(model, amount, MAX_POOL_GPUS)
        except InvalidRequest as error:
            raise ValueError(f"{model} = {amount!r}: {error.why}") from None
    return found


Amounts = Annotated[dict[str, int], BeforeValidator(_amounts)]


def _known(value: Any, model: type[BaseModel], where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping, not {type(value).__name__}")  # pydantic catches ValueError only
    refuse_unknown(value, model, where)
    return value


def _thousandths(value: Any) -> int:
    """Of GPU-hours or dollars."""
    try:
        return units.milli("amount", value, MAX_BUDGET)
    except InvalidRequest as error:
        raise ValueError(f"{value!r}: {error.why}") from None


class Budget(BaseModel):
    """What a team, with all below it, may spend in a period (of the calendar, UTC), in thousandths of each unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    gpu_hours: Annotated[int, BeforeValidator(_thousandths)] | None = None
    dollars: Annotated[int, BeforeValidator(_thousandths)] | None = None
    per: Literal["day", "week", "month", "quarter", "year"] = "month"

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        return _known(value, cls, "a budget")

    @model_validator(mode="after")
    def _something(self) -> Budget:
        if self.gpu_hours is None and self.dollars is None:
            raise ValueError("a budget needs gpu_hours, dollars, or both")
        return self


class Team(BaseModel):
    """One team. Amounts are milli-GPU by model; an absent limit, lend or borrow means no bound."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    parent: str = ""
    quota: Amounts = {}
    limit: Amounts = {}
    lend: Amounts = {}
    borrow: Amounts = {}
    weight: int = Field(default=1, ge=1, le=1_000_000)
    budget: Budget | None = None
    default_lease: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        return _known(value if value is not None else {}, cls, "a team")

    @model_validator(mode="after")
    def _consistent(self) -> Team:
        for model, cap in self.limit.items():
            if cap < self.quota.get(model, 0):
                raise ValueError(
                    f"limit {cap / 1000:g} is below quota {self.quota[model] / 1000:g} for {model}"
                )
        for model, lent in self.lend.items():
            if lent > self.quota.get(model, 0):
                raise ValueError(f"lend {lent / 1000:g} is above quota for {model}: only quota can be lent")
        odd = self.default_lease.keys() - job.SHAPE - {"gpu_model"}
        if odd:
            raise ValueError(f"default_lease has unknown keys {sorted(odd)}; known: {sorted(job.SHAPE)}")
        try:
            job.parse_job({}, default_lease=self.default_lease)
        except InvalidRequest as error:
            raise ValueError(f"default_lease: {error}") from None
        return self


class Teams(BaseModel):
    """The whole tree, by team name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teams: dict[str, Team] = Field(min_length=1, max_length=MAX_TEAMS)

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        return _known(value, cls, "the teams file")

    @model_validator(mode="after")
    def _tree(self) -> Teams:
        for name, team in self.teams.items():
            try:
                job.team_name("team", name)
            except InvalidRequest as error:
                raise ValueError(f"teams.{name[:60]}: {error.why}") from None
            if name in ("admin", "job"):
                raise ValueError(f"teams.{name}: the name is reserved")
            if team.parent and team.parent not in self.teams:
                raise ValueError(f"teams.{name}.parent: there is no team {team.parent!r}")
            self._no_cycle(name)
        self._children_fit()
        return self

    def _no_cycle(self, name: str) -> None:
        path, at = [name], self.teams[name].parent
        while at and at in self.teams:
            path.append(at)
            if at == name or len(path) > 64:
                raise ValueError(f"teams.{name}.parent: a cycle {' -> '.join(path[:8])}")
            at = self.teams[at].parent

    def _children_fit(self) -> None:
        sums: dict[tuple[str, str], int] = {}
        for team in self.teams.values():
            for model, amount in team.quota.items() if team.parent else ():
                sums[team.parent, model] = sums.get((team.parent, model), 0) + amount
        for (parent, model), total in sums.items():
            own = self.teams[parent].quota.get(model, 0)
            if total > own:
                raise ValueError(
                    f"teams.{parent}.quota: its children have {total / 1000:g} {model}, it has {own / 1000:g}"
                )

    def guaranteed(self) -> dict[str, int]:
        """Milli-GPU guaranteed by model over the top-level teams."""
        total: dict[str, int] = {}
        for team in self.teams.values():
            for model, amount in team.quota.items() if not team.parent else ():
                total[model] = total.get(model, 0) + amount
        return total

    def over_committed(self, pool: Mapping[str, int]) -> list[str]:
        """One sentence per model whose guaranteed quotas exceed `pool` (milli-GPU by model, with "gpus")."""
        return [
            f"quotas guarantee {amount / 1000:g} {model} and the pool has {pool.get(model, 0) / 1000:g}"
            for model, amount in sorted(self.guaranteed().items())
            if amount > pool.get(model, 0)
        ]

    def leaves(self) -> list[str]:
        """Teams that are nobody's parent: those that hold tokens and submit."""
        parents = {team.parent for team in self.teams.values()}
        return [name for name in self.teams if name not in parents]


def parse_teams(text: str, source: str = "teams.yaml") -> Teams:
    """The tree that `text` holds; `InvalidRequest` with the path of each wrong field."""
    try:
        return Teams.model_validate(load_mapping(text, source))
    except ValidationError as error:
        raise explain(error, source) from None


def stored_teams(content: Mapping[str, Any]) -> Teams:
    """The tree that `Teams.model_dump()` wrote down: checked when it was read from its file, not again."""
    teams = {}
    for name, fields in content.get("teams", {}).items():
        budget = fields.get("budget")
        given = {**fields, "budget": None if budget is None else Budget.model_construct(**budget)}
        teams[name] = Team.model_construct(**given)
    return Teams.model_construct(teams=teams)


def load_teams(path: Path) -> Teams:
    """The tree of a file; `InvalidRequest` also when it cannot be read."""
    try:
        return parse_teams(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"cannot read the teams file {path}", why=str(error), code="config-unreadable"
        ) from None
