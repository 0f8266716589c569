"""Step 5: two models on one device behind the front door, and 2,000 real requests to them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx

from demo_steps.checks import StepFailed
from demo_steps.jobs import EXAMPLE, PREFIX, Submitted, ray_job, told
from demo_steps.run import OPS, PATIENCE_S, Run

STEP, LOAD = "serve", "requests"
JOB = "flights-serve"
ENDPOINT = "flights"
REQUESTS = 2000
TWO_ON_ONE = {"workers": "2", "gpus_per_worker": "0.5", "gpu_memory_mib": "8192", "cpus_per_worker": "1"}


def start(demo: Run) -> Submitted:
    demo.screen.start(STEP, "submitting")
    return demo.submit(STEP, JOB, OPS, "python", "serve_models.py", metadata=TWO_ON_ONE)


def await_ready(demo: Run, job: Submitted) -> None:
    said = job.event("ready", PATIENCE_S)
    infos = said["infos"]
    places = {(info["ray_node_id"], tuple(info["devices"])) for info in infos}
    lease = demo.pool.job(job.job_id)["lease"]
    leased = {(w["ray_node_id"], tuple(w["devices"])) for w in lease["workers"]}
    device = ", ".join(f"{w['node']} device {w['devices'][0]}" for w in lease["workers"][:1])
    expect = demo.checks.expect
    expect(
        STEP,
        "two models share one device",
        len(infos) == 2 and len(places) == 1,
        device,
        "one device in the raylet's own book",
    )
    expect(STEP, "it is the leased device", places == leased, device, "as the lease says")
    check_contract(demo)
    demo.facts["serve"] = {
        "job": job.job_id,
        "infos": infos,
        "device": device,
        "seconds_to_ready": said.get("seconds"),
    }
    demo.screen.say(STEP, f"two models on {device}")


def check_contract(demo: Run) -> None:
    """The OpenAPI page behind the front door names the fields; a request with a missing field is told which."""
    document = call(demo, "GET", "openapi.json").json()
    schemas = document.get("components", {}).get("schemas", {})
    fields = {name for schema in schemas.values() for name in schema.get("properties", {})}
    expect = demo.checks.expect
    expect(
        STEP,
        "OpenAPI names the request's fields",
        {"carrier", "sched_dep_time", "probability"} <= fields,
        f"{len(fields)} fields",
        "request and answer",
    )
    refused = call(demo, "POST", "predict", {"year": 2013})
    named = refused.status_code == 422 and "carrier" in refused.text
    expect(
        STEP,
        "a bad request is told its field",
        named,
        refused.status_code,
        "422 that names the missing field",
    )


def call(demo: Run, method: str, tail: str, body: Any = None) -> httpx.Response:
    token = demo.pool.token_file(OPS).read_text(encoding="utf-8").strip()
    url = f"{demo.pool.url}/endpoints/{ENDPOINT}/{tail}"
    return httpx.request(
        method, url, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=30.0, trust_env=False
    )


def send_requests(demo: Run) -> None:
    """Run load.py, a client like any other, with the team's token."""
    demo.screen.start(LOAD, "sending")
    output = demo.out / "requests.json"
    command = [
        *(sys.executable, str(EXAMPLE / "load.py"), "--url", f"{demo.pool.url}/endpoints/{ENDPOINT}"),
        *("--data", str(demo.pool.data), "--requests", str(REQUESTS), "--output", str(output)),
    ]
    token = demo.pool.token_file(OPS).read_text(encoding="utf-8").strip()
    log, deadline = demo.logs / "requests.log", time.monotonic() + PATIENCE_S
    environment = {**demo.pool.environment(OPS), "MOORAGE_TOKEN": token}
    with (
        open(log, "w", encoding="utf-8") as out,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
            bufsize=1,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            out.write(line)
            if line.startswith(PREFIX):
                demo.screen.say(LOAD, told(json.loads(line[len(PREFIX) :])))
            if time.monotonic() > deadline:
                process.terminate()
    if not output.is_file():
        lines = tuple(log.read_text(encoding="utf-8").splitlines()[-12:])
        raise StepFailed(LOAD, f"load.py ended with exit code {process.returncode}", str(log), lines)
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    check_load(demo, found)


def check_load(demo: Run, found: dict[str, Any]) -> None:
    expect = demo.checks.expect
    ended = found["ok"] + found["errors"]
    expect(
        LOAD,
        "all requests were sent",
        ended == REQUESTS,
        f"{found['ok']:,} answered + {found['errors']:,} errors",
        f"{REQUESTS:,} in all",
    )
    expect(LOAD, "no errors", found["errors"] == 0, found["errors"], "0")
    parity, batching = found["parity"], found["batching"]
    expect(
        LOAD,
        "served is what was tested",
        parity["holds"] and parity["rows"] == found["ok"],
        f"at most {parity['max_abs_diff']:.1e} apart on {parity['rows']:,} rows",
        f"within {parity['tolerance']:g} of the offline prediction of the same version",
    )
    expect(
        LOAD,
        "requests were batched",
        batching["mean"] > 1,
        f"{batching['mean']:.2f} rows a batch",
        "more than 1",
    )
    latency, each = found["latency_ms"], found["latencies_ms"]
    measured = sum(math.isfinite(one) and one > 0 for one in each)
    expect(
        LOAD,
        "latencies were measured",
        measured == len(each) == found["ok"] > 0,
        f"{measured:,} finite and positive of {len(each):,}",
        f"one for each of the {found['ok']:,} answers",
    )
    again = {f"p{percent}": nearest_rank(each, percent) for percent in (50, 95, 99)}
    expect(
        LOAD,
        "the percentiles are those of the latencies",
        all(latency[name] == value for name, value in again.items()),
        ", ".join(f"{name} {latency[name]:.1f} ms" for name in again),
        ", ".join(f"{name} {value:.1f} ms" for name, value in again.items()),
    )
    demo.facts["requests"] = found
    demo.screen.done(
        LOAD,
        f"{found['sent']:,} requests, {found['errors']} errors, "
        f"p50 {latency['p50']:.1f}  p95 {latency['p95']:.1f}  p99 {latency['p99']:.1f} ms",
    )


def nearest_rank(values: Sequence[float], percent: int) -> float:
    """The smallest value that at least `percent` of 100 of them do not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)] if ordered else math.nan


def stop(demo: Run, job: Submitted) -> None:
    """Through the unmodified CLI, as the team would."""
    if demo.keep:
        demo.screen.done(STEP, "kept running")
        return
    ray_job(demo.pool, OPS, "stop", job.job_id, log=demo.logs / "ray-job-stop.log")
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        state = demo.pool.job(job.job_id)
        if state["ray_status"] not in ("PENDING", "RUNNING") and state["lease"] is None:
            break
        time.sleep(0.2)
    expect = demo.checks.expect
    expect(STEP, "stopped when asked", state["state"] == "STOPPED", state["state"], "STOPPED")
    demo.screen.done(STEP, "served and stopped")
