"""Requests and answers over the wire (V1), through the real routes, with a model that is two lines long and
no Ray.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import Field

from moorage.serve.contract import MAX_PROBLEMS, Answer, ModelRef, Request
from moorage.serve.web import MAX_BODY_BYTES, endpoint_app


class Trip(Request):
    carrier: str
    distance: float = Field(gt=0)
    flight: int
    tail: str | None


class Verdict(Answer):
    probability: float
    late: bool


class Spec:
    endpoint, request, answer = "trips", Trip, Verdict


class Host:
    """What a replica offers the routes, with the arithmetic in place of a network."""

    spec = Spec
    model_ref = ModelRef(name="trips", version="3")
    data_version = "v001"

    def __init__(self) -> None:
        self.refusals = 0

    async def answer(self, row: Any, request_id: str) -> Answer:
        if row.carrier == "XX":
            raise RuntimeError("secret path /etc/model")
        return Verdict(
            probability=row.distance / 1000,
            late=row.distance > 500,
            model=self.model_ref,
            data_version=self.data_version,
            request_id=request_id,
        )

    def refused(self) -> None:
        self.refusals += 1

    def info(self) -> dict[str, Any]:
        return {"endpoint": "trips"}


GOOD = {"carrier": "UA", "distance": 250.0, "flight": 7, "tail": None}


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def client(host: Host) -> TestClient:
    return TestClient(endpoint_app(host), raise_server_exceptions=False)


def test_an_answer_names_model_data_and_request(client: TestClient) -> None:
    answer = client.post("/predict", json=GOOD, headers={"x-request-id": "r-17"})
    assert answer.status_code == 200
    assert answer.json() == {
        "model": {"name": "trips", "version": "3"},
        "data_version": "v001",
        "request_id": "r-17",
        "probability": 0.25,
        "late": False,
    }


@pytest.mark.parametrize(
    ("change", "field", "kind"),
    [
        ({"distance": None}, "distance", "float_type"),
        ({"distance": "12"}, "distance", "float_type"),
        ({"distance": -1.0}, "distance", "greater_than"),
        ({"distance": float("nan")}, "distance", "finite_number"),
        ({"distance": float("inf")}, "distance", "finite_number"),
        ({"flight": 7.5}, "flight", "int_type"),
        ({"flight": True}, "flight", "int_type"),
        ({"weather": 1}, "weather", "extra_forbidden"),
    ],
)
def test_a_bad_field_is_named(
    client: TestClient, host: Host, change: dict[str, Any], field: str, kind: str
) -> None:
    body = json.dumps({**GOOD, **change})  # Python writes NaN and Infinity, as careless clients do
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [(error["field"], error["kind"]) for error in answer.json()["errors"]] == [(field, kind)]
    assert field in answer.json()["detail"]
    assert host.refusals == 1
    assert client.post("/predict", json=GOOD).status_code == 200


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_a_missing_field_is_named(client: TestClient, missing: str) -> None:
    answer = client.post("/predict", json={name: value for name, value in GOOD.items() if name != missing})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [missing]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe"])
def test_what_is_no_object_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["errors"] or answer.status_code == 400


def test_what_was_sent_is_not_echoed(client: TestClient) -> None:
    answer = client.post("/predict", json={**GOOD, "password": "hunter2"})
    assert answer.status_code == 422 and "hunter2" not in answer.text


def test_a_model_that_raises_says_nothing_of_its_inside(client: TestClient) -> None:
    answer = client.post("/predict", json={**GOOD, "carrier": "XX"}, headers={"x-request-id": "r-9"})
    assert answer.status_code == 500
    assert answer.json()["code"] == "model-failed" and answer.json()["request_id"] == "r-9"
    assert "secret" not in answer.text


def test_a_huge_body_is_refused_before_it_is_read(client: TestClient) -> None:
    answer = client.post("/predict", content=b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413 and answer.json()["code"] == "too-large"


def test_a_chunked_body_is_refused_once_it_is_over(client: TestClient) -> None:
    """A body without a length must not get around the limit."""

    def chunks() -> Iterator[bytes]:
        yield json.dumps(GOOD).encode()
        for _ in range(5):
            yield b" " * (MAX_BODY_BYTES // 4)

    answer = client.post("/predict", content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["code"] == "too-large"


def test_a_body_of_many_faults_is_answered_in_few_words(client: TestClient) -> None:
    odd = {**GOOD, **{f"x{n}": 1 for n in range(20_000)}, "y" * 5_000: 1}
    answer = client.post("/predict", json=odd)
    assert answer.status_code == 422 and len(answer.content) < 20_000
    assert len(answer.json()["errors"]) == MAX_PROBLEMS
    assert answer.json()["detail"].endswith(f"and {20_001 - MAX_PROBLEMS} more")


def test_broken_json_names_the_body_and_no_field(client: TestClient) -> None:
    answer = client.post("/predict", content=b"{", headers={"content-type": "application/json"})
    assert [error["field"] for error in answer.json()["errors"]] == [""]


def test_openapi_describes_the_contract_and_links_stay_relative(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    trip = document["components"]["schemas"]["Trip"]
    assert trip["additionalProperties"] is False and set(trip["required"]) == set(GOOD)
    assert document["servers"] == [{"url": "."}]
    assert document["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"][
        "schema"
    ] == {"$ref": "#/components/schemas/Verdict"}
    page = client.get("/docs").text
    assert 'href="openapi.json"' in page and "/predict" in page
    assert "http://" not in page and "https://" not in page and "<script" not in page


def test_unknown_routes_and_verbs_are_problem_documents(client: TestClient) -> None:
    assert client.get("/nothing").json()["code"] == "not-found"
    assert client.get("/predict").json()["code"] == "method-not-allowed"


def infer(**change: Any) -> dict[str, Any]:
    tensors = {
        "carrier": {"name": "carrier", "shape": [2], "datatype": "BYTES", "data": ["UA", "DL"]},
        "distance": {"name": "distance", "shape": [2, 1], "datatype": "FP64", "data": [250.0, 750.0]},
        "flight": {"name": "flight", "shape": [2], "datatype": "INT64", "data": [7, 8]},
        "tail": {"name": "tail", "shape": [2], "datatype": "BYTES", "data": ["N1", None]},
    }
    for name, tensor in change.items():
        tensors[name] = {**tensors.get(name, {"name": name, "shape": [2]}), **tensor}
    return {"id": "q1", "inputs": list(tensors.values())}


def test_open_inference_protocol(client: TestClient) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    metadata = client.get("/v2/models/trips").json()
    assert metadata["versions"] == ["3"]
    assert {t["name"]: t["datatype"] for t in metadata["inputs"]} == {
        "carrier": "BYTES",
        "distance": "FP64",
        "flight": "INT64",
        "tail": "BYTES",
    }
    answer = client.post("/v2/models/trips/infer", json=infer()).json()
    assert answer["id"] == "q1" and answer["model_version"] == "3"
    assert {t["name"]: t["data"] for t in answer["outputs"]} == {
        "probability": [0.25, 0.75],
        "late": [False, True],
    }
    assert client.get("/v2/models/other").status_code == 404


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"flight": {"shape": [3]}}, "flight: shape"),
        ({"carrier": {"data": ["UA"]}}, "carrier: 1 values"),
        ({"flight": {"datatype": "FP64", "data": [1.0, 2.0]}}, "flight: datatype"),
        ({"flight": {"data": [1, "x"]}}, "inputs.flight.1"),
        ({"wind": {"datatype": "FP64", "data": [1.0, 2.0]}}, "wind: no such input"),
        ({"distance": {"data": [1.0, -5.0]}}, "inputs.distance.1"),
    ],
)
def test_bad_tensors_are_named(client: TestClient, change: dict[str, Any], named: str) -> None:
    answer = client.post("/v2/models/trips/infer", json=infer(**change))
    assert answer.status_code == 422
    assert named in answer.json()["detail"]


def test_contract_and_web_bring_no_ray() -> None:
    modules = "sys, moorage.serve.web, moorage.serve.batching, moorage.serve.placement"
    code = f"import {modules}; print('ray' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
