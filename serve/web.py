"""The routes of one endpoint: predict, info, health, OpenAPI and the Open Inference Protocol v2. FastAPI, no
Ray.

Every link is relative, so the pages work under any prefix: straight from Serve and behind the front door.
Refused requests are RFC 9457 problem documents that name the field.
"""

from typing import Any, Protocol

from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moorage.serve.contract import (
    Answer,
    FieldProblem,
    ModelRef,
    Problem,
    Request,
    field_problems,
    invalid,
    problem,
)
from moorage.serve.docs_page import render
from moorage.serve.v2 import add_routes as add_v2_routes

MAX_BODY_BYTES = 4 * 1024 * 1024
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    422: {
        "model": Problem,
        "description": "the request does not match the contract; `errors` names the fields",
    },
    500: {"model": Problem, "description": "the model could not answer this row"},
}


class Spec(Protocol):
    """The part of a host's spec the web needs."""

    @property
    def endpoint(self) -> str: ...
    @property
    def request(self) -> type[Request]: ...
    @property
    def answer(self) -> type[Answer]: ...


class Host(Protocol):
    """What the routes need of a model host (so that they are tested without Ray)."""

    @property
    def spec(self) -> Any: ...
    @property
    def model_ref(self) -> ModelRef: ...
    @property
    def data_version(self) -> str: ...
    async def answer(self, row: Request, request_id: str) -> Answer: ...
    def refused(self) -> None: ...
    def info(self) -> dict[str, Any]: ...


class ProblemResponse(JSONResponse):
    media_type = "application/problem+json"


class Refused(Exception):
    """A request that parsed but breaks the contract (the v2 routes find that out by themselves)."""

    def __init__(self, errors: list[FieldProblem]) -> None:
        super().__init__("; ".join(error.field for error in errors))
        self.errors = errors


def request_id(http: HttpRequest) -> str:
    """The caller's id. Serve's proxy makes one when there is none; "" only in a test without a proxy."""
    return http.headers.get("x-request-id", "")[:128]


def endpoint_app(host: Host) -> FastAPI:
    """The ASGI application of one endpoint."""
    spec: Spec = host.spec
    app = FastAPI(
        title=f"{spec.endpoint}: {host.model_ref.name} {host.model_ref.version}",
        description=(
            f"A Moorage endpoint on data version {host.data_version}. "
            "Typed: extra, missing and non-finite values are refused with the field named."
        ),
        version=host.model_ref.version,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": "."}],
        root_path_in_servers=False,
    )
    app.add_middleware(BodyLimit, limit=MAX_BODY_BYTES)
    _add_predict(app, host, spec)
    _add_pages(app, host)
    add_v2_routes(app, host)
    _add_error_answers(app, host)
    return app


def _add_predict(app: FastAPI, host: Host, spec: Spec) -> None:
    async def predict(row: Any, http: HttpRequest) -> Any:
        return await host.answer(row, request_id(http))

    predict.__annotations__["row"] = spec.request  # the type is known only now; FastAPI reads annotations
    app.add_api_route(
        "/predict",
        predict,
        methods=["POST"],
        response_model=spec.answer,
        responses=_PROBLEMS,
        summary="Predict one row",
        description="Rows that arrive together are computed together; see `limits` in /info.",
    )


def _add_pages(app: FastAPI, host: Host) -> None:
    async def info() -> dict[str, Any]:
        return host.info()

    async def health() -> dict[str, str]:
        return {"status": "ok"}

    async def page() -> str:
        return render(app.openapi())

    app.add_api_route(
        "/info", info, summary="Model, device (by the raylet's book), limits and batch statistics"
    )
    app.add_api_route("/healthz", health, summary="The replica answers")
    app.add_api_route("/docs", page, response_class=HTMLResponse, include_in_schema=False)


def _add_error_answers(app: FastAPI, host: Host) -> None:
    def answer(http: HttpRequest, document: BaseModel, status: int) -> Response:
        return ProblemResponse(document.model_dump(), status_code=status)

    async def unprocessable(http: HttpRequest, error: Exception) -> Response:
        host.refused()
        found = error.errors if isinstance(error, Refused) else field_problems(_errors(error))
        return answer(http, invalid(found, request_id(http)), 422)

    async def plain(http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        code = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}.get(
            error.status_code, "http-error"
        )
        return answer(
            http, problem(code, str(error.detail), error.status_code, request_id(http)), error.status_code
        )

    async def failed(http: HttpRequest, error: Exception) -> Response:
        # What went wrong inside is in the replica's log under this id; an answer does not leak it.
        document = problem("model-failed", "the model could not answer this request", 500, request_id(http))
        return answer(http, document, 500)

    app.add_exception_handler(RequestValidationError, unprocessable)
    app.add_exception_handler(Refused, unprocessable)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(StarletteHTTPException, plain)
    app.add_exception_handler(Exception, failed)


def _errors(error: Exception) -> Any:
    return error.errors() if isinstance(error, RequestValidationError) else []


class BodyLimit:
    """Refuses a body over `limit` bytes: unread when its length says so, else (chunked) as soon as it is over."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or int(value) > self._limit):
                document = problem("too-large", self._over, 413, "")
                await ProblemResponse(document.model_dump(), status_code=413)(scope, receive, send)
                return
        await self._app(scope, self._counted(receive), send)

    @property
    def _over(self) -> str:
        return f"the body is over {self._limit} bytes"

    def _counted(self, receive: Receive) -> Receive:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise StarletteHTTPException(413, self._over)
            return message

        return counted
