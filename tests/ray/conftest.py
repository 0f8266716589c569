"""One real pool per test module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pools import Pool, discard, start


@pytest.fixture(scope="module")
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """A pool that is up (`moorage up`), shared by the tests of one module and stopped after them (`moorage
    down`).

    The module may say what it wants, each key optional:
    `POOL = {"nodes": 1, "logical_gpus": 2, "teams": "<yaml>", "settings": "<yaml>",
    "options": ["--device-mib", "8192"]}`.
    The default is two nodes of four L4, and the teams `ops` (quota 4, limit 6) and `research` (quota 2, limit
    2).
    """
    running = start(getattr(request.module, "POOL", {}))
    yield running
    discard(running)
