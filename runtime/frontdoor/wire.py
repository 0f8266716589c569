"""Ray's JSON shapes and ours: a submission in, JobDetails out.

Shapes from Ray 2.60 `dashboard/modules/job/common.py` (JobSubmitRequest) and `pydantic_models.py` (JobDetails).
Strings are checked strictly; a field this Ray version does not know is refused by name, as Ray's own server does.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, ValidationError

from moorage.errors import InvalidRequest
from moorage.runtime.control.api import JobView, Submission

Number = StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)]
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_RESERVED_ENV = ("MOORAGE_", "RAY_AUTH")
_RESERVED_METADATA = re.compile(r"job_submission_id|moorage_.*|ray_auth.*", re.IGNORECASE)
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
M = TypeVar("M", bound=BaseModel)
MAX_ENTRYPOINT = 64 * 1024


class Body(BaseModel):
    """A request's body: strictly typed, and a field that is not known is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RaySubmit(Body):
    """The body of `POST /api/jobs/`."""

    entrypoint: Annotated[StrictStr, Field(min_length=1, max_length=MAX_ENTRYPOINT)]
    submission_id: StrictStr | None = None
    job_id: StrictStr | None = None
    runtime_env: dict[str, Any] | None = None
    metadata: dict[str, StrictStr] | None = None
    entrypoint_num_cpus: Number | None = None
    entrypoint_num_gpus: Number | None = None
    entrypoint_memory: StrictInt | None = None
    entrypoint_resources: dict[str, Number] | None = None
    entrypoint_label_selector: dict[str, StrictStr] | None = None


def load_json(body: bytes) -> Any:
    """The JSON value of a request body. NaN and Infinity are refused: they are not JSON, and compare oddly.

    So is what RFC 8259 (sections 6, 7, 8.2) leaves to who reads it and no database column holds: integers beyond 64
    bits, fractions beyond a double, half of a surrogate pair, the character NUL.
    """

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not a JSON number")

    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text, parse_constant=refuse, parse_int=_whole, parse_float=_fraction)
        if "\\u" in text:
            _check_text(value)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is not valid JSON", why=str(error)[:300], code="bad-json") from error
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"the integer {text[:24]}{'...' * (len(text) > 24)} is beyond 64 bits")
    return int(text)


def _fraction(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"the number {text[:24]}{'...' * (len(text) > 24)} is too large")
    return float(text)


def _check_text(value: Any) -> None:
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
        elif isinstance(one, str) and (bad := _NO_TEXT.search(one)):
            raise ValueError(f"a string holds \\u{ord(bad[0]):04x}, which is no character of a text")


def validate(model: type[M], value: Any) -> M:
    """`value` as `model`, or `InvalidRequest` that names each wrong field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        wrong = [
            {"field": ".".join(str(part) for part in one["loc"]) or "(body)", "problem": one["msg"]}
            for one in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise InvalidRequest(
            "The request does not have the right shape",
            why="; ".join(f"{one['field']}: {one['problem']}" for one in wrong[:10]),
            code="bad-shape",
            errors=wrong,
        ) from error


def whole(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """An integer query parameter between 0 and `most`; InvalidRequest names it."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= most):
        raise InvalidRequest(
            f"Query parameter {name}={text[:40]!r} is not a number from 0 to {most}", code="bad-query"
        )
    return int(text)


def submission(body: Any, resolve: Callable[[str], tuple[str, Path] | None]) -> Submission:
    """What to run, from Ray's body. `resolve` maps a package URI to its content URI and file, None for other URIs."""
    ask = validate(
        RaySubmit, {k: v for k, v in body.items() if v is not None} if isinstance(body, dict) else body
    )
    metadata = dict(ask.metadata or {})
    for key in metadata:
        if _RESERVED_METADATA.fullmatch(key):
            raise InvalidRequest(
                f"Metadata key {key!r} is reserved",
                why="Ray or Moorage sets it",
                todo="remove it",
                code="reserved-key",
            )
    environment, packages = runtime_env(ask.runtime_env or {}, resolve)
    wanted_id = ask.submission_id or ask.job_id
    if wanted_id is not None and not _ID.fullmatch(wanted_id):
        raise InvalidRequest(
            f"submission_id {wanted_id[:80]!r} cannot be used",
            why="expected 1 to 128 letters, digits, '.', '_' and '-', starting with a letter or digit",
            code="bad-submission-id",
        )
    return Submission(
        entrypoint=ask.entrypoint,
        submission_id=wanted_id,
        metadata=metadata,
        runtime_env=environment,
        entrypoint_num_cpus=ask.entrypoint_num_cpus,
        entrypoint_num_gpus=ask.entrypoint_num_gpus,
        entrypoint_memory=ask.entrypoint_memory,
        entrypoint_resources=ask.entrypoint_resources,
        entrypoint_label_selector=ask.entrypoint_label_selector,
        packages=packages,
    )


def runtime_env(
    asked: Mapping[str, Any], resolve: Callable[[str], tuple[str, Path] | None]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The environment with content URIs in place of uploaded names, and {content URI: file}.

    Refuses variables that Moorage or Ray's authentication sets, and local paths (Ray's client uploads those).
    An empty `py_modules` is dropped: Ray 2.60 fails any job that carries one.
    """
    environment, packages = dict(asked), {}

    def place(where: str, uri: Any) -> str:
        if not isinstance(uri, str) or "://" not in uri:
            raise InvalidRequest(
                f"runtime_env {where} must be a URI, not {str(uri)[:80]!r}",
                why="the front door cannot read your files",
                todo="submit with Ray's client or `moorage submit`: they upload local folders",
                code="local-path",
            )
        found = resolve(uri)
        if found is None:
            return uri
        packages[found[0]] = str(found[1])
        return found[0]

    variables = environment.get("env_vars") or {}
    if not isinstance(variables, dict) or not all(isinstance(v, str) for v in variables.values()):
        raise InvalidRequest("runtime_env env_vars must map names to strings", code="bad-shape")
    for name in variables:
        if name.upper().startswith(_RESERVED_ENV):
            raise InvalidRequest(
                f"Environment variable {name} is reserved",
                why="Moorage sets it for each job",
                code="reserved-key",
            )
    if environment.get("working_dir"):
        environment["working_dir"] = place("working_dir", environment["working_dir"])
    modules = environment.pop("py_modules", None) or []
    if not isinstance(modules, list):
        raise InvalidRequest("runtime_env py_modules must be a list of URIs", code="bad-shape")
    if modules:
        environment["py_modules"] = [place("py_modules", module) for module in modules]
    return environment, packages


def _milliseconds(at_ns: int | None) -> int | None:
    return None if at_ns is None else at_ns // 1_000_000


def job_details(job: JobView) -> dict[str, Any]:
    """Ray's JobDetails of a job; one that waits is PENDING with our reason as its message."""
    asked = job.submission
    failed_by_itself = job.ray_status == "FAILED" and job.driver_exit_code not in (None, 0)
    return {
        "type": "SUBMISSION",
        "job_id": None,
        "submission_id": job.job_id,
        "driver_info": None,
        "status": job.ray_status,
        "entrypoint": asked.entrypoint,
        "message": job.message,
        "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR" if failed_by_itself else None,
        "start_time": _milliseconds(job.started_ns),
        "end_time": _milliseconds(job.ended_ns),
        "metadata": dict(asked.metadata),
        "runtime_env": dict(asked.runtime_env),
        "driver_agent_http_address": None,
        "driver_node_id": None,
        "driver_exit_code": job.driver_exit_code,
    }
