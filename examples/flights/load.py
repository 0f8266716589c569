"""Send real July flights to the endpoint, a client like any other: latency, throughput, errors, parity.

    python load.py --url http://127.0.0.1:8470/endpoints/flights --data DIR [-n 2000] [--concurrency 16]

The token comes from --token or MOORAGE_TOKEN. Parity: each served probability is compared with the offline
prediction of the same registered version on the stored features of the same flight.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

MAX_CONCURRENCY = 256
PARITY = 1e-5  # float32 sums in another order differ in the seventh digit


def say(event: str, **facts: object) -> None:
    print("@moorage " + json.dumps({"event": event, **facts}), flush=True)


@dataclass
class Outcome:
    """What came back: `answers[i]` belongs to body i, None where it failed; latencies in seconds."""

    answers: list[dict[str, Any] | None]
    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


async def send(
    url: str, token: str | None, bodies: Sequence[bytes], concurrency: int, *, quiet: bool = False
) -> Outcome:
    """Post every body once, `concurrency` at a time. An answer that is not 200 is a failure, counted by its kind."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    outcome, todo = Outcome(answers=[None] * len(bodies)), iter(range(len(bodies)))
    every = max(1, len(bodies) // 8)

    async def one(session: aiohttp.ClientSession, place: int) -> None:
        began = time.perf_counter()
        try:
            async with session.post(f"{url}/predict", data=bodies[place]) as answer:
                body = await answer.read()
                if answer.status != 200:
                    outcome.failures[f"HTTP {answer.status}"] += 1
                    return
            took = time.perf_counter() - began
            outcome.answers[place] = json.loads(body)
            outcome.latencies.append(took)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            outcome.failures[type(error).__name__] += 1

    async def caller(session: aiohttp.ClientSession) -> None:
        for place in todo:  # shared by all callers: each takes the next one
            await one(session, place)
            done = len(outcome.latencies) + outcome.failures.total()
            if not quiet and done % every == 0:
                say("requests", done=done, of=len(bodies), errors=outcome.failures.total())

    timeout = aiohttp.ClientTimeout(total=60, sock_connect=5)
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        began = time.perf_counter()
        await asyncio.gather(*(caller(session) for _ in range(concurrency)))
        outcome.seconds = time.perf_counter() - began
    return outcome


def july(version: Path, count: int) -> tuple[Any, list[bytes]]:
    """Flight ids, evenly spread over the gate's rows, and the request of each as its schedule has it."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.dataset as ds
    from features import sources
    from flights_schema import EVENT

    from moorage.runtime.features.schema import split
    from moorage.runtime.features.sources import read_rows

    files = sorted(str(path) for path in version.glob("part-*.parquet"))
    gate = ds.dataset(files, format="parquet").to_table(["flight_id"], filter=ds.field("split") == "gate")
    known = gate["flight_id"].to_numpy()
    ids = known[np.linspace(0, len(known) - 1, min(count, len(known))).astype(np.int64)]
    source = next(one for one in sources(None) if one.name == "flights")
    good, _ = split(source.schema.check(read_rows(source.path).take(pa.array(ids))))
    assert good.num_rows == len(ids), "rows of the feature view must be good rows"
    events = good.select(EVENT.names).to_pylist()
    return ids, [json.dumps(event).encode() for event in events]


def offline(version: Path, artifact: Path, ids: Any) -> Any:
    """The probabilities that the same artifact gives to the stored features of these flights."""
    import flights_model
    import numpy as np
    import pyarrow.dataset as ds
    import torch

    model, card = flights_model.load(artifact)
    numeric, categories = flights_model.feature_names(card), list(flights_model.cardinalities(card))
    files = sorted(str(path) for path in version.glob("part-*.parquet"))
    stored = ds.dataset(files, format="parquet").to_table(
        ["flight_id", *numeric, *categories], filter=ds.field("split") == "gate"
    )
    order = np.argsort(stored["flight_id"].to_numpy())
    stored = stored.take(order[np.searchsorted(stored["flight_id"].to_numpy()[order], ids)])

    def stack(names: list[str], kind: Any) -> torch.Tensor:
        return torch.from_numpy(np.stack([stored[name].to_numpy().astype(kind) for name in names], axis=1))

    rows = flights_model.Rows(stack(numeric, np.float32), stack(categories, np.int64), torch.empty(len(ids)))
    return flights_model.predict(model, rows)


def parity(outcome: Outcome, expected: Any) -> dict[str, Any]:
    """How far the served probabilities are from the offline ones."""
    pairs = [
        (a["probability"], float(e)) for a, e in zip(outcome.answers, expected, strict=True) if a is not None
    ]
    worst = max((abs(served - computed) for served, computed in pairs), default=math.nan)
    return {"rows": len(pairs), "max_abs_diff": worst, "tolerance": PARITY, "holds": bool(worst <= PARITY)}


def quantiles(latencies: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the worst in milliseconds, by nearest rank."""
    ordered = sorted(latencies) or [math.nan]

    def at(percent: float) -> float:
        return round(ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] * 1e3, 3)

    return {"p50": at(50), "p95": at(95), "p99": at(99), "max": at(100)}


def summary(outcome: Outcome, concurrency: int) -> dict[str, Any]:
    answered, errors = sum(answer is not None for answer in outcome.answers), outcome.failures.total()
    return {
        "sent": answered + errors,
        "ok": answered,
        "errors": errors,
        "failures": dict(outcome.failures),
        "seconds": round(outcome.seconds, 3),
        "requests_per_s": round(answered / outcome.seconds, 1),
        "concurrency": concurrency,
        "latency_ms": quantiles(outcome.latencies),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True, help="of the endpoint: <front door>/endpoints/<name>")
    parser.add_argument("--token", default=os.environ.get("MOORAGE_TOKEN"))
    parser.add_argument("--data", default=os.environ.get("MOORAGE_DATA"), help="the pool's data folder")
    parser.add_argument("--artifact", help="the model's directory (default: asked from the registry)")
    parser.add_argument("-n", "--requests", "--n", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    return parser.parse_args()


async def ask_info(url: str, token: str | None) -> Mapping[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{url}/info") as answer:
        if answer.status != 200:
            raise SystemExit(f"{url}/info answers {answer.status}: {(await answer.text())[:300]}")
        found: dict[str, Any] = await answer.json()
        return found


def main() -> int:
    options = arguments()
    if not options.data:
        raise SystemExit("say where the pool's data is: --data, or MOORAGE_DATA")
    url, data = options.url.rstrip("/"), Path(options.data)
    concurrency = min(max(1, options.concurrency), MAX_CONCURRENCY)
    info = asyncio.run(ask_info(url, options.token))
    version = data / "features" / "flights" / info["data_version"]
    ids, bodies = july(version, options.requests)
    say("sending", rows=len(bodies), concurrency=concurrency)
    outcome = asyncio.run(send(url, options.token, bodies, concurrency))

    artifact = options.artifact
    if artifact is None:
        from moorage.runtime.registry import Registry

        artifact = (
            Registry.open(data).resolve(f"models:/{info['model']['name']}/{info['model']['version']}").path
        )
    found = summary(outcome, concurrency) | {
        "model": info["model"],
        "data_version": info["data_version"],
        "parity": parity(outcome, offline(version, Path(artifact), ids)),
        "batching": asyncio.run(ask_info(url, options.token))["batching"],
    }
    say("sent", **found)
    if options.output:
        each = {"latencies_ms": [round(1e3 * one, 3) for one in outcome.latencies]}
        options.output.write_text(json.dumps(found | each) + "\n", encoding="utf-8")
    return 0 if not found["errors"] and found["parity"]["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
