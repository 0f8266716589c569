"""The pool's page in a real browser, over a real control plane and a simulated pool (S8, L6).

Needs Chromium; without it the tests are skipped with that reason.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from control_world import World, world

from moorage.runtime.frontdoor.app import create_app
from moorage.runtime.frontdoor.settings import Settings

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
EVIL = "python x.py '<img src=x onerror=\"document.title=1\">'"


@asynccontextmanager
async def served(w: World, home: Path) -> AsyncIterator[str]:
    async with TestServer(create_app(w.service, None, Settings(home=home))) as server:
        yield str(server.make_url("")).rstrip("/")


async def rendered(address: str, profile: Path, width: int = 1200) -> str:
    """The document after the page's scripts ran for three seconds of the browser's own time."""
    assert BROWSER is not None
    browser = await asyncio.create_subprocess_exec(
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
        f"--user-data-dir={profile}", f"--window-size={width},1500", "--virtual-time-budget=3000", "--dump-dom",
        address, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(browser.communicate(), 60)
    finally:
        if browser.returncode is None:
            browser.kill()
            await browser.wait()
    return out.decode()


def text_of(document: str) -> str:
    body = document[document.index("<main") : document.index("</main>")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


async def test_the_pool_is_drawn_and_a_job_explained(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        w.submit("ops", job="holder", gpus=1, workers=2, seconds="900")
        w.submit("ops", job="waiter", gpus=1, workers=6)
        w.submit("research", job="small", gpus=0.25, seconds="900")
        w.run(3)
        token = (w.tokens / "admin.token").read_text().strip()
        async with served(w, tmp_path) as url:
            page = await rendered(f"{url}/#token={token}", tmp_path / "p1")
            told = text_of(page)
            assert 'data-ready="pool"' in page and token not in page
            assert "2.25 / 8 GPUs held" in told and "2 / 2 nodes alive" in told
            assert len(re.findall(r'class="device["\s]', page)) == 8 and page.count('class="device idle') == 5
            assert "node-0/0, L4: holder of ops holds 1" in page
            assert "waiter" in told and "its limit of 6 GPUs" in told
            job = text_of(await rendered(f"{url}/#token={token}&to=/job/waiter", tmp_path / "p2"))
            assert "Any of these would start it now" in job and "job.waits" in job


async def test_what_holds_gpus_without_a_lease_is_shown(tmp_path: Path) -> None:
    """S9: the guard's open findings, and nothing where there are none."""
    with world(tmp_path) as w:
        token = (w.tokens / "admin.token").read_text().strip()
        quiet = w.service.guard(w.caller("admin"))
        assert quiet["findings"] == []
        rogue = {
            "id": "1", "kind": "no-lease", "state": "WARNED", "target": "actor", "target_id": "ab12",
            "owner": "02000000",
            "job": "", "team": "", "milli_gpu": 1500, "message": "a driver that nobody submitted holds <b>1.5</b> GPUs",
            "detail": {}, "first_ns": 0, "warned_ns": 0, "ended_ns": None,
            "stops_in_ns": 20 * 10**9,
        }  # fmt: skip
        async with served(w, tmp_path) as url:
            assert "Guard" not in text_of(await rendered(f"{url}/#token={token}", tmp_path / "p1"))
            w.service.guard = lambda caller: quiet | {"findings": [rogue]}  # type: ignore[method-assign]
            told = text_of(await rendered(f"{url}/#token={token}", tmp_path / "p2"))
            assert "actor ab12" in told and "1.5" in told and "20 s" in told and "&lt;b&gt;1.5" in told


async def test_texts_of_others_are_text(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        from moorage.runtime.control.api import Submission

        w.clock.tick(0.001)
        w.service.submit(
            w.caller("ops"),
            Submission(
                entrypoint=EVIL, submission_id="evil", metadata={"note": "<script>document.title=2</script>"}
            ),
        )
        w.run(1)
        token = (w.tokens / "ops.token").read_text().strip()
        async with served(w, tmp_path) as url:
            page = await rendered(f"{url}/#token={token}&to=/job/evil", tmp_path / "p")
            assert "<title>Moorage</title>" in page
            assert "<img src=x" not in page and "&lt;img src=x" in page
            assert "note=&lt;script&gt;" in page


async def test_a_wrong_token_asks_for_another(tmp_path: Path) -> None:
    with world(tmp_path) as w:
        async with served(w, tmp_path) as url:
            told = text_of(await rendered(f"{url}/#token=wrong", tmp_path / "p"))
            assert "not known to the pool" in told
