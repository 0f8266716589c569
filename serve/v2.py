"""The Open Inference Protocol v2 over any typed endpoint: one named tensor per field, `[n]` or `[n, 1]` of
each.

The mapping is the request's own JSON schema: string BYTES, integer INT64, number FP64, boolean BOOL (an
optional field takes its type). An infer request of n rows joins the same batch queue as n single requests.
Source: https://github.com/kserve/open-inference-protocol (REST, required API).
"""

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moorage.serve.contract import Answer, FieldProblem, field_problems

if TYPE_CHECKING:
    from moorage.serve.web import Host

Datatype = Literal["BOOL", "INT64", "FP64", "BYTES"]
MAX_INFER_ROWS = 1024
_DATATYPE: dict[str, Datatype] = {"string": "BYTES", "integer": "INT64", "number": "FP64", "boolean": "BOOL"}


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class TensorMetadata(_Wire):
    name: str
    datatype: Datatype
    shape: list[int]


class Tensor(_Wire):
    name: str
    shape: list[int] = Field(min_length=1, max_length=2)
    datatype: Datatype
    data: list[Any]
    parameters: dict[str, Any] = {}


class RequestedOutput(_Wire):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(_Wire):
    id: str | None = Field(default=None, max_length=128)
    parameters: dict[str, Any] = {}
    inputs: list[Tensor] = Field(min_length=1, max_length=256)
    outputs: list[RequestedOutput] = []


class InferAnswer(_Wire):
    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Any] = {}
    outputs: list[Tensor]


class ModelMetadata(_Wire):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


def signature(kind: type[BaseModel], *, without: frozenset[str] = frozenset()) -> list[TensorMetadata]:
    """The tensors of a pydantic type, in field order; fields that are not scalars are left out."""
    found = []
    for name, schema in kind.model_json_schema()["properties"].items():
        options = [schema, *schema.get("anyOf", ())]
        types = [_DATATYPE[option["type"]] for option in options if option.get("type") in _DATATYPE]
        if name not in without and types:
            found.append(TensorMetadata(name=name, datatype=types[0], shape=[-1]))
    return found


def answer_tensors(kind: type[Answer]) -> list[TensorMetadata]:
    """The endpoint's own answer fields (what `Answer` itself adds is in the envelope)."""
    return signature(kind, without=frozenset(Answer.model_fields))


def to_rows(body: InferRequest, expected: list[TensorMetadata]) -> list[dict[str, Any]] | list[FieldProblem]:
    """Row dictionaries of the tensors, or every shape, name and datatype that does not fit."""
    datatypes = {tensor.name: tensor.datatype for tensor in expected}
    rows = body.inputs[0].shape[0]
    problems = []
    for number, tensor in enumerate(body.inputs):
        fault = _fault(tensor, datatypes, rows)
        if fault:
            problems.append(
                FieldProblem(field=f"inputs.{number}", message=f"{tensor.name}: {fault}", kind="tensor")
            )
    names = [tensor.name for tensor in body.inputs]
    problems += [
        FieldProblem(field="inputs", message=f"{name}: given twice", kind="tensor")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if problems:
        return problems
    return [{tensor.name: tensor.data[row] for tensor in body.inputs} for row in range(rows)]


def _fault(tensor: Tensor, datatypes: dict[str, Datatype], rows: int) -> str:
    if tensor.name not in datatypes:
        return f"no such input, this model takes {', '.join(datatypes)}"
    if tensor.datatype != datatypes[tensor.name]:
        return f"datatype {tensor.datatype}, expected {datatypes[tensor.name]}"
    if not 1 <= rows <= MAX_INFER_ROWS:
        return f"{rows} rows, expected 1 to {MAX_INFER_ROWS}"
    if tensor.shape[0] != rows or (len(tensor.shape) == 2 and tensor.shape[1] != 1):
        return f"shape {tensor.shape}, expected [{rows}] or [{rows}, 1]"
    if len(tensor.data) != rows:
        return f"{len(tensor.data)} values for {rows} rows"
    return ""


def to_answer(answers: list[Answer], wanted: list[str], kind: type[Answer], request_id: str) -> InferAnswer:
    """The answers as one tensor per answer field (`wanted` picks; empty is all)."""
    tensors = [tensor for tensor in answer_tensors(kind) if not wanted or tensor.name in wanted]
    first = answers[0]
    return InferAnswer(
        model_name=first.model.name,
        model_version=first.model.version,
        id=request_id,
        parameters={"data_version": first.data_version},
        outputs=[
            Tensor(
                name=tensor.name,
                shape=[len(answers)],
                datatype=tensor.datatype,
                data=[getattr(answer, tensor.name) for answer in answers],
            )
            for tensor in tensors
        ],
    )


def add_routes(app: FastAPI, host: "Host") -> None:
    """The protocol's REST routes, for the one model this host has."""
    from moorage.serve.web import Refused, request_id

    request, answer = host.spec.request, host.spec.answer
    inputs, outputs = signature(request), answer_tensors(answer)
    prefix = "/v2/models/{model}"

    def known(model: str, version: str = "") -> None:
        if model != host.model_ref.name or (version and version != host.model_ref.version):
            raise HTTPException(
                404, f"no model {model} {version}".rstrip() + f", this is {host.model_ref.name}"
            )

    async def live() -> dict[str, bool]:
        return {"live": True}

    async def ready() -> dict[str, bool]:
        return {"ready": True}

    async def server() -> dict[str, Any]:
        return {"name": "moorage", "version": host.model_ref.version, "extensions": []}

    async def model_ready(model: str) -> dict[str, Any]:
        known(model)
        return {"name": model, "ready": True}

    async def metadata(model: str) -> ModelMetadata:
        known(model)
        versions = [host.model_ref.version]
        return ModelMetadata(
            name=model, versions=versions, platform="moorage_torch", inputs=inputs, outputs=outputs
        )

    async def infer(model: str, body: InferRequest, http: HttpRequest) -> InferAnswer:
        known(model)
        rows = to_rows(body, inputs)
        problems = [row for row in rows if isinstance(row, FieldProblem)]
        parsed = []
        for number, row in enumerate(rows if not problems else []):
            try:
                parsed.append(request.model_validate(row))
            except ValidationError as error:
                for found in field_problems(error.errors()):
                    problems.append(found.model_copy(update={"field": f"inputs.{found.field}.{number}"}))
        wanted = [output.name for output in body.outputs]
        names = {tensor.name for tensor in outputs}
        for name in wanted:
            if name not in names:
                problems.append(
                    FieldProblem(field="outputs", message=f"{name}: no such output", kind="tensor")
                )
        if problems:
            raise Refused(problems)
        identity = body.id or request_id(http)
        answers = await asyncio.gather(*(host.answer(row, identity) for row in parsed))
        return to_answer(list(answers), wanted, answer, identity)

    app.add_api_route("/v2", server, summary="Open Inference Protocol: server metadata")
    app.add_api_route("/v2/health/live", live, summary="Open Inference Protocol: live")
    app.add_api_route("/v2/health/ready", ready, summary="Open Inference Protocol: ready")
    app.add_api_route(
        prefix, metadata, summary="Open Inference Protocol: model metadata", response_model_exclude_none=True
    )
    app.add_api_route(f"{prefix}/ready", model_ready, summary="Open Inference Protocol: model ready")
    app.add_api_route(f"{prefix}/infer", infer, methods=["POST"], summary="Open Inference Protocol: infer")
