"""The registry: MLflow on SQLite for the record, content-addressed sealed directories for the bytes.

MLflow is imported on first use (it takes seconds). Everything that changes an alias happens under one file lock,
so two jobs cannot promote at once; opening the database does too, because two first openers would both migrate it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from moorage.errors import Conflict, InvalidRequest, NotFound
from moorage.runtime.registry import sealed
from moorage.runtime.registry.artifact import adopt
from moorage.runtime.registry.environment import Environment, current_environment
from moorage.runtime.registry.gate import GateDecision, GatePolicy, Holdout
from moorage.runtime.registry.gate import gate as decide
from moorage.runtime.registry.tracking import Run, quiet_mlflow

CHAMPION, PREVIOUS = "champion", "previous"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_URI = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))")
_TAG = "moorage."


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One registered version. `sha256` is the digest of the artifact's manifest; `gate` is None until decided."""

    name: str
    version: int
    path: Path
    sha256: str
    run_id: str
    created_ms: int
    aliases: tuple[str, ...]
    metrics: Mapping[str, float]
    data_version: str
    code_version: str
    environment: str
    lineage: Mapping[str, Any]
    gate: Mapping[str, Any] | None
    holdout: Holdout | None

    def as_dict(self) -> dict[str, Any]:
        """JSON for `moorage models`."""
        names = (
            "name",
            "version",
            "sha256",
            "run_id",
            "created_ms",
            "data_version",
            "code_version",
            "environment",
        )
        out: dict[str, Any] = {name: getattr(self, name) for name in names}
        out |= {"path": str(self.path), "aliases": list(self.aliases), "metrics": dict(self.metrics)}
        return out | {"lineage": dict(self.lineage), "gate": dict(self.gate) if self.gate else None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A model to load: every byte below `path` was just compared with `sha256`."""

    name: str
    version: int
    path: Path
    sha256: str
    data_version: str


class Registry:
    """Tracking and registry of one pool, below its data folder."""

    def __init__(self, data: Path | str, *, clock: Callable[[], float] = time.time) -> None:
        self.data, self._clock = Path(data).absolute(), clock
        self.database, self.artifacts = self.data / "mlflow.db", self.data / "artifacts"

    @classmethod
    def open(cls, data: Path | str | None = None) -> Registry:
        """The registry of this job's pool (MOORAGE_DATA), or of the pool in MOORAGE_HOME."""
        home = Path(os.environ.get("MOORAGE_HOME") or Path.home() / ".moorage")
        return cls(data or os.environ.get("MOORAGE_DATA") or home / "data")

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.database}"

    def _lock(self, name: str) -> FileLock:
        self.data.mkdir(parents=True, exist_ok=True)
        return FileLock(self.data / f".{name}.lock", timeout=120)

    @cached_property
    def client(self) -> Any:
        """MLflow's client on an up-to-date schema."""
        quiet_mlflow()
        from mlflow.tracking import MlflowClient

        with self._lock("mlflow"):
            client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
        return client

    # --- tracking

    def experiment(self, name: str) -> str:
        """The id of experiment `name`, created when new."""
        client = self.client  # opened before the lock is taken: opening takes the same one
        with self._lock("mlflow"):
            found = client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            return str(client.create_experiment(name, artifact_location=(self.artifacts / "runs").as_uri()))

    def track(
        self,
        run_name: str,
        *,
        experiment: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
    ) -> Run:
        """Start a run; use it as a context manager (an exception ends it as FAILED)."""
        tags = {**_job_tags(), **(tags or {})}
        created = self.client.create_run(self.experiment(experiment), run_name=run_name, tags=tags)
        run = Run(client=self.client, run_id=created.info.run_id, clock=self._clock)
        run.params(params)
        return run

    # --- registry

    def register(
        self,
        name: str,
        directory: Path | str,
        *,
        metrics: Mapping[str, float],
        data_version: str,
        code_version: str,
        environment: Environment | None = None,
        lineage: Mapping[str, Any] | None = None,
        run_id: str = "",
    ) -> Version:
        """Adopt a model directory and record a new version of `name`. No alias moves."""
        _check_name(name)
        client, environment = self.client, environment or current_environment()
        path, seal = adopt(Path(directory), self.artifacts / "models" / name)
        self._keep_environment(environment)
        tags = {
            "sha256": seal.sha256,
            "metrics": json.dumps(dict(metrics), sort_keys=True),
            "data_version": data_version,
            "code_version": code_version,
            "environment": environment.digest,
            "packages": json.dumps(environment.named(), sort_keys=True),
            "lineage": json.dumps({**_job_lineage(), **(lineage or {})}, sort_keys=True),
        }
        with self._lock("registry"):
            if not client.search_registered_models(filter_string=f"name = '{name}'"):
                client.create_registered_model(name)
            made = client.create_model_version(
                name, str(path), run_id or None, tags={_TAG + key: value for key, value in tags.items()}
            )
        return self.version(name, int(made.version))

    def _keep_environment(self, environment: Environment) -> None:
        folder = self.artifacts / "environments" / environment.digest
        if not folder.exists():
            body = environment.as_json().encode()
            sealed.commit(folder, lambda work: sealed.write_bytes(work / "environment.json", body))

    def version(self, name: str, version: int) -> Version:
        """One version. Raises NotFound."""
        from mlflow.exceptions import MlflowException

        _check_name(name)
        try:
            found = self.client.get_model_version(name, str(version))
        except MlflowException as error:
            raise NotFound(
                f"no version {version} of model {name!r}", todo="see: moorage models list"
            ) from error
        return self._view(found, self.aliases(name))

    def versions(self, name: str) -> list[Version]:
        """All versions of `name`, newest first."""
        _check_name(name)
        found = self.client.search_model_versions(f"name = '{name}'", max_results=1000)
        aliases = self.aliases(name) if found else {}
        return sorted((self._view(one, aliases) for one in found), key=lambda one: -one.version)

    def models(self) -> list[str]:
        return sorted(str(model.name) for model in self.client.search_registered_models(max_results=1000))

    def aliases(self, name: str) -> dict[str, int]:
        """alias -> version."""
        from mlflow.exceptions import MlflowException

        try:
            model = self.client.get_registered_model(name)
        except MlflowException as error:
            raise NotFound(f"no model {name!r}", todo="see: moorage models list") from error
        return {str(alias): int(version) for alias, version in model.aliases.items()}

    def _view(self, found: Any, aliases: Mapping[str, int]) -> Version:
        tags = {key[len(_TAG) :]: value for key, value in found.tags.items() if key.startswith(_TAG)}
        holdout = json.loads(tags["holdout"]) if "holdout" in tags else None
        return Version(
            name=str(found.name),
            version=int(found.version),
            path=Path(found.source),
            sha256=tags.get("sha256", ""),
            run_id=found.run_id or "",
            created_ms=int(found.creation_timestamp),
            aliases=tuple(sorted(a for a, v in aliases.items() if v == int(found.version))),
            metrics=json.loads(tags.get("metrics", "{}")),
            data_version=tags.get("data_version", ""),
            code_version=tags.get("code_version", ""),
            environment=tags.get("environment", ""),
            lineage=json.loads(tags.get("lineage", "{}")),
            gate=json.loads(tags["gate"]) if "gate" in tags else None,
            holdout=Holdout(**holdout) if holdout else None,
        )

    # --- the gate and the aliases

    def gate(
        self,
        name: str,
        version: int,
        holdout: Holdout,
        *,
        champion: Holdout | None = None,
        measured: int | None = None,
        policy: GatePolicy | None = None,
    ) -> GateDecision:
        """Decide on a version and write the decision, with its reasons, on it.

        `champion` re-measures the champion on the rows of `holdout`; by default its recorded figures are compared.
        `measured` is the version those figures are of: Conflict (`gate-stale`) if another one is champion by now.
        """
        with self._lock("registry"):
            self.version(name, version)  # NotFound before anything is written
            holder = self.aliases(name).get(CHAMPION)
            if measured is not None and measured != holder:
                raise Conflict(
                    f"the champion of {name} changed while it was measured",
                    why=f"version {measured} was measured, the champion is {holder or 'none'}",
                    todo="measure again",
                    code="gate-stale",
                )
            against = "" if holder is None or holder == version else str(holder)
            if against and champion is None:
                champion = self.version(name, int(against)).holdout
            decision = decide(holdout, champion if against else None, policy, against=against)
            figures = {f: getattr(holdout, f) for f in ("rows_id", "log_loss", "auc", "majority_log_loss")}
            self._tag(name, version, "holdout", json.dumps(figures))
            self._tag(name, version, "gate", json.dumps({**decision.as_dict(), "at": self._clock()}))
            self._tag(name, version, "gate.passed", str(decision.passed).lower())
            self._tag(name, version, "gate.reasons", "; ".join(decision.reasons)[:4000])
        return decision

    def _tag(self, name: str, version: int, key: str, value: str) -> None:
        self.client.set_model_version_tag(name, str(version), _TAG + key, value)

    def promote(self, name: str, version: int, alias: str = CHAMPION) -> Version:
        """Move `alias` to a version that passed the gate; what held `champion` becomes `previous`.

        Raises Conflict when the gate refused it, never ran, or compared it with another champion than today's.
        """
        if alias == PREVIOUS or not _NAME.fullmatch(alias):
            raise InvalidRequest(
                f"alias {alias!r} cannot be given", why="'previous' follows promotions by itself"
            )
        with self._lock("registry"):
            candidate, holder = self.version(name, version), self.aliases(name).get(alias)
            if holder == version:
                return candidate
            champion = self.aliases(name).get(CHAMPION)
            _check_gate(candidate, champion)
            sealed_now = sealed.verify(candidate.path)
            if sealed_now.sha256 != candidate.sha256:
                raise sealed.Damaged(f"version {version} of {name} is not the artifact that was registered")
            if alias == CHAMPION and holder is not None:
                self.client.set_registered_model_alias(name, PREVIOUS, str(holder))
            self.client.set_registered_model_alias(name, alias, str(version))
            self._tag(name, version, f"promoted.{alias}", f"{self._clock():.3f}")
        return self.version(name, version)

    def rollback(self, name: str, reason: str = "") -> Version:
        """Give `champion` back to `previous`. Raises Conflict when there is none.

        The gate's decision on the version that loses the alias is void: it must pass again to come back.
        """
        with self._lock("registry"):
            aliases = self.aliases(name)
            previous, champion = aliases.get(PREVIOUS), aliases.get(CHAMPION)
            if previous is None or previous == champion:
                raise Conflict(f"model {name!r} has no previous champion to go back to", code="no-previous")
            sealed.verify(self.version(name, previous).path)
            self.client.set_registered_model_alias(name, CHAMPION, str(previous))
            self.client.delete_registered_model_alias(name, PREVIOUS)
            if champion is not None:
                void = {"at": self._clock(), "reason": reason, "gate": self.version(name, champion).gate}
                self._tag(name, champion, "rolled_back", json.dumps(void))
                self._tag(name, champion, "gate.passed", "void")
                if void["gate"] is not None:
                    self.client.delete_model_version_tag(name, str(champion), _TAG + "gate")
        return self.version(name, previous)

    def resolve(self, uri: str) -> Resolved:
        """`models:/<name>@<alias>` or `models:/<name>/<version>` -> a verified directory.

        Raises NotFound, or `sealed.Damaged` when the bytes are not those that were registered.
        """
        match = _URI.fullmatch(uri)
        if match is None:
            raise InvalidRequest(f"{uri!r} is not a model", todo="write models:/name@alias or models:/name/3")
        name, alias, number = match.groups()
        _check_name(name)
        if number is None:
            aliases = self.aliases(name)
            if alias not in aliases:
                known = ", ".join(sorted(aliases)) or "none yet"
                raise NotFound(f"model {name!r} has no alias {alias!r}", why=f"it has: {known}")
            number = str(aliases[alias])
        found = self.version(name, int(number))
        if not found.path.resolve().is_relative_to(self.artifacts.resolve()):
            raise sealed.Damaged(f"version {number} of {name} lies outside the artifact folder")
        seal = sealed.verify(found.path)
        if seal.sha256 != found.sha256:
            raise sealed.Damaged(f"version {number} of {name} is not the artifact that was registered")
        return Resolved(
            name=name,
            version=found.version,
            path=found.path,
            sha256=seal.sha256,
            data_version=found.data_version,
        )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} is not a model name", why="letters, digits, - and _, at most 64")


def _check_gate(candidate: Version, champion: int | None) -> None:
    label = f"version {candidate.version} of {candidate.name}"
    if candidate.gate is None:
        raise Conflict(
            f"{label} has not passed the gate",
            why="never decided, or void since a rollback",
            code="gate-missing",
        )
    if not candidate.gate["passed"]:
        failed = "; ".join(c["reason"] for c in candidate.gate["checks"] if not c["passed"])
        raise Conflict(f"the gate refused {label}", why=failed, code="gate-refused")
    if candidate.gate["against"] != ("" if champion is None else str(champion)):
        raise Conflict(
            f"the gate's decision on {label} is stale",
            why=f"it was compared with version {candidate.gate['against'] or 'none'}, the champion is {champion}",
            todo="run the gate again",
            code="gate-stale",
        )


def _job_lineage() -> dict[str, str]:
    named = {"job": "MOORAGE_JOB_ID", "team": "MOORAGE_TEAM", "attempt": "MOORAGE_ATTEMPT"}
    return {key: os.environ[variable] for key, variable in named.items() if os.environ.get(variable)}


def _job_tags() -> dict[str, str]:
    return {_TAG + key: value for key, value in _job_lineage().items()}
