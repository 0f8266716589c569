"""A tree of teams as its file says it: written, edited, and compared with another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from moorage.configs.teams import Team, Teams
from moorage.errors import InvalidRequest, NotFound

FIGURES = ("quota", "limit", "lend", "borrow")


def as_file(teams: Teams) -> dict[str, Any]:
    """What `parse_teams` would read as this tree; amounts in GPUs, what is not said left out."""
    return {"teams": {name: _team(team) for name, team in teams.teams.items()}}


def text(content: Mapping[str, Any]) -> str:
    """As YAML, in the order that it has."""
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


def _team(team: Team) -> dict[str, Any]:
    said: dict[str, Any] = {"parent": team.parent} if team.parent else {}
    for name in FIGURES:
        if amounts := getattr(team, name):
            said[name] = {model: _gpus(milli) for model, milli in amounts.items()}
    if team.weight != 1:
        said["weight"] = team.weight
    if budget := team.budget:
        amounts = {"gpu_hours": budget.gpu_hours, "dollars": budget.dollars}
        said["budget"] = {unit: _gpus(x) for unit, x in amounts.items() if x is not None} | {
            "per": budget.per
        }
    if team.default_lease:
        said["default_lease"] = dict(team.default_lease)
    return said


def _gpus(milli: int) -> int | float:
    return milli // 1000 if milli % 1000 == 0 else milli / 1000


def edited(content: Mapping[str, Any], team: str, figures: Iterable[str]) -> dict[str, Any]:
    """The file with some figures of one team set: `gpus=4` and `L4=2` are its quota, `limit.gpus=6`, `lend.gpus=1` and
    `borrow.gpus=2` as they say, `limit=6` is `limit.gpus=6`, `weight=2`; `none` takes a figure out.

    NotFound (`team-not-found`), InvalidRequest (`bad-figure`) for what is no figure; amounts are checked when the file
    is read.
    """
    teams = {name: dict(fields) for name, fields in content["teams"].items()}
    if team not in teams:
        raise NotFound(
            f"there is no team {team!r}", todo=f"one of: {', '.join(sorted(teams))}", code="team-not-found"
        )
    for figure in figures:
        key, sign, value = figure.partition("=")
        name, dot, model = key.partition(".")
        if not dot and name not in (*FIGURES, "weight"):
            name, model = "quota", key
        if (
            not (sign and key and value)
            or name not in (*FIGURES, "weight")
            or (dot and (name == "weight" or not model))
        ):
            raise InvalidRequest(
                f"{figure!r} is no figure of a team",
                todo="write gpus=4, L4=2, limit.gpus=6, lend.gpus=1, borrow.gpus=2 or weight=2; none takes it out",
                code="bad-figure",
            )
        said = teams[team]
        if name == "weight":
            said |= {"weight": _number(value)}
        else:
            amounts = dict(said.get(name, {})) | {model or "gpus": _number(value)}
            said[name] = {m: x for m, x in amounts.items() if x is not None}
        teams[team] = {k: v for k, v in said.items() if v not in (None, {})}
    return {**content, "teams": teams}


def _number(value: str) -> Any:
    """None for "none"; a text that is no number stays one, for the file's own check to refuse."""
    if value == "none":
        return None
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        return value


def changes(before: Teams, after: Teams) -> list[dict[str, Any]]:
    """Each figure that differs, milli-GPU; None = not said (no bound; no quota)."""
    found: list[dict[str, Any]] = []
    for team in sorted({*before.teams, *after.teams}):
        old, new = before.teams.get(team), after.teams.get(team)
        if old is None or new is None:
            there = {"before": old is not None, "after": new is not None}
            found.append({"team": team, "figure": "team", "gpu_model": "", **there})
            continue
        for name in FIGURES:
            was, will = getattr(old, name), getattr(new, name)
            found += [
                {
                    "team": team,
                    "figure": name,
                    "gpu_model": model,
                    "before": was.get(model),
                    "after": will.get(model),
                }
                for model in sorted({*was, *will})
                if was.get(model) != will.get(model)
            ]
        for name in ("parent", "weight", "budget", "default_lease"):
            if getattr(old, name) != getattr(new, name):
                pair = {"before": _plain(getattr(old, name)), "after": _plain(getattr(new, name))}
                found.append({"team": team, "figure": name, "gpu_model": "", **pair})
    return found


def _plain(value: Any) -> Any:
    """As JSON has it: a budget is a mapping."""
    return value.model_dump() if hasattr(value, "model_dump") else value
