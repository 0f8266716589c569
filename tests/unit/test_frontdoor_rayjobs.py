"""Ray's Jobs API at the front door: shapes, refusals, packages, logs (S9)."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from frontdoor_world import RAY_TOKEN, Script, World, world

from moorage.runtime.control import api
from moorage.runtime.frontdoor.app import prune
from moorage.runtime.frontdoor.context import CONTEXT
from moorage.runtime.frontdoor.spool import Spool, SpoolFull

PACKAGE = "/api/packages/gcs/_ray_pkg_0123456789abcdef.zip"


def archive(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    return out.getvalue()


async def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    document = json.loads(await answer.text())
    assert (answer.status, document["code"]) == (status, code), document
    assert answer.content_type == "application/problem+json"
    assert document["status"] == status
    return dict(document)


async def refused(door: World, body: Any, code: str, status: int = 400) -> dict[str, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await door.client.post(
        "/api/jobs/", data=data, headers=door.as_("ops") | {"Content-Type": "application/json"}
    )
    found = await problem(answer, status, code)
    assert not door.control.views, "a refused submission must leave no job"
    return found


async def test_a_waiting_job_is_pending_with_our_reason(tmp_path: Path) -> None:
    """S9: the shape Ray's client parses, with the pending reason as message; logs are empty."""
    async with world(tmp_path) as door:
        job_id = await door.submit(metadata={"note": "mine"}, runtime_env={"env_vars": {"A": "1"}})
        found = await (await door.client.get(f"/api/jobs/{job_id}", headers=door.as_("ops"))).json()
        assert found["status"] == "PENDING" and found["type"] == "SUBMISSION"
        assert found["message"] == "team ops uses 4 of 4 GPUs; waits for 2"
        assert found["metadata"] == {"note": "mine"} and found["submission_id"] == job_id
        listed = await (await door.client.get("/api/jobs/", headers=door.as_("ops"))).json()
        assert listed == [found]
        logs = await (await door.client.get(f"/api/jobs/{job_id}/logs", headers=door.as_("ops"))).json()
        assert logs == {"logs": ""}


async def test_a_failed_job_says_so_as_ray_does(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        job_id = await door.submit()
        door.control.to(job_id, api.QUARANTINED, "exit code 3, three times", exit_code=3)
        found = await (await door.client.get(f"/api/jobs/{job_id}", headers=door.as_("ops"))).json()
        assert (found["status"], found["error_type"]) == ("FAILED", "JOB_ENTRYPOINT_COMMAND_ERROR")
        assert found["driver_exit_code"] == 3 and found["end_time"] > 1_700_000_000_000


async def test_stop_and_delete(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        job_id = await door.submit()
        early = await door.client.delete(f"/api/jobs/{job_id}", headers=door.as_("ops"))
        await problem(early, 409, "conflict")
        stopped = await door.client.post(f"/api/jobs/{job_id}/stop", headers=door.as_("ops"))
        assert await stopped.json() == {"stopped": True}
        again = await door.client.post(f"/api/jobs/{job_id}/stop", headers=door.as_("ops"))
        assert await again.json() == {"stopped": False}
        deleted = await door.client.delete(f"/api/jobs/{job_id}", headers=door.as_("ops"))
        assert await deleted.json() == {"deleted": True}


async def test_a_foreign_job_does_not_exist(tmp_path: Path) -> None:
    """G1: every route answers 404 for another team's job, the same as for none."""
    async with world(tmp_path) as door:
        job_id = await door.submit("ops")
        mine = door.as_("research")
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/stop"),
            ("GET", "/logs"),
            ("GET", "/logs/tail"),
        ):
            answer = await door.client.request(method, f"/api/jobs/{job_id}{path}", headers=mine)
            await problem(answer, 404, "not-found")
        assert await (await door.client.get("/api/jobs/", headers=mine)).json() == []


async def test_another_team_in_metadata_or_header_is_403(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        await refused(door, {"entrypoint": "x", "metadata": {"team": "research"}}, "forbidden", 403)
        answer = await door.client.post(
            "/api/jobs/", json={"entrypoint": "x"}, headers=door.as_("ops") | {"Moorage-Team": "research"}
        )
        await problem(answer, 403, "forbidden")
        await refused(door, {"entrypoint": "x", "metadata": {"worker": "2"}}, "invalid-request")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "bad-json"),
        (b'{"entrypoint": "x", "entrypoint_num_gpus": NaN}', "bad-json"),
        (b"[" * 100_000, "bad-json"),
        (["x"], "bad-shape"),
        ({}, "bad-shape"),
        ({"entrypoint": ""}, "bad-shape"),
        ({"entrypoint": 7}, "bad-shape"),
        ({"entrypoint": "x", "entrypoint_nmu_gpus": 1}, "bad-shape"),
        ({"entrypoint": "x", "metadata": {"workers": 2}}, "bad-shape"),
        ({"entrypoint": "x", "metadata": "team=ops"}, "bad-shape"),
        ({"entrypoint": "x", "entrypoint_num_gpus": True}, "bad-shape"),
        ({"entrypoint": "x", "metadata": {"job_submission_id": "raysubmit_1"}}, "reserved-key"),
        ({"entrypoint": "x", "metadata": {"moorage_digest": "0"}}, "reserved-key"),
        ({"entrypoint": "x", "runtime_env": {"env_vars": {"RAY_AUTH_TOKEN": "t"}}}, "reserved-key"),
        ({"entrypoint": "x", "runtime_env": {"env_vars": {"moorage_token": "t"}}}, "reserved-key"),
        ({"entrypoint": "x", "runtime_env": {"env_vars": {"A": 1}}}, "bad-shape"),
        ({"entrypoint": "x", "runtime_env": {"working_dir": "/home/me"}}, "local-path"),
        ({"entrypoint": "x", "runtime_env": {"working_dir": "gcs://_ray_pkg_77.zip"}}, "unknown-package"),
        ({"entrypoint": "x", "runtime_env": {"working_dir": "gcs://../admin.zip"}}, "bad-package-name"),
        ({"entrypoint": "x", "submission_id": "../etc"}, "bad-submission-id"),
        ({"entrypoint": "x", "submission_id": "a" * 129}, "bad-submission-id"),
    ],
)
async def test_malformed_submissions(tmp_path: Path, body: Any, code: str) -> None:
    """Bad input: refused with a stable code, and no job is left."""
    async with world(tmp_path) as door:
        await refused(door, body, code)


async def test_a_large_body_is_413(tmp_path: Path) -> None:
    async with world(tmp_path, max_body=10_000) as door:
        await refused(door, {"entrypoint": "x", "metadata": {"a": "b" * 20_000}}, "too-large", 413)


async def test_empty_py_modules_are_dropped(tmp_path: Path) -> None:
    """Ray 2.60 breaks a job whose runtime_env has an empty py_modules."""
    async with world(tmp_path) as door:
        job_id = await door.submit(runtime_env={"py_modules": [], "env_vars": {"A": "b"}})
        assert door.control.views[job_id].submission.runtime_env == {"env_vars": {"A": "b"}}


async def test_only_moorage_headers_reach_the_control_plane(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        answer = await door.client.post(
            "/api/jobs/",
            json={"entrypoint": "x"},
            headers=door.as_("ops") | {"Moorage-Team": "ops", "X-Secret": "s"},
        )
        job_id = (await answer.json())["submission_id"]
        assert door.control.headers[job_id] == {"Moorage-Team": "ops"}


async def test_a_package_is_kept_by_content_and_private_to_its_uploader(tmp_path: Path) -> None:
    """One team cannot put other bytes under the name another team's client will compute."""
    async with world(tmp_path) as door:
        assert (await door.client.get(PACKAGE, headers=door.as_("ops"))).status == 404
        evil = await door.client.put(PACKAGE, data=archive(train="evil"), headers=door.as_("research"))
        assert evil.status == 200
        assert (await door.client.get(PACKAGE, headers=door.as_("ops"))).status == 404
        assert (
            await door.client.put(PACKAGE, data=archive(train="mine"), headers=door.as_("ops"))
        ).status == 200
        assert (await door.client.get(PACKAGE, headers=door.as_("ops"))).status == 200
        job_id = await door.submit(
            runtime_env={"working_dir": PACKAGE.replace("/api/packages/gcs/", "gcs://")}
        )
        asked = door.control.views[job_id].submission
        uri = asked.runtime_env["working_dir"]
        with zipfile.ZipFile(asked.packages[uri]) as packed:
            assert packed.read("train") == b"mine"
        assert Path(asked.packages[uri]).name == uri.removeprefix("gcs://")
        # what the job shows may be submitted again
        assert await door.submit(runtime_env={"working_dir": uri}) != job_id


@pytest.mark.parametrize(
    ("path", "data", "status", "code"),
    [
        ("/api/packages/https/x.zip", archive(a="b"), 400, "bad-package-protocol"),
        ("/api/packages/gcs/x.exe", archive(a="b"), 400, "bad-package-name"),
        ("/api/packages/gcs/..%2F..%2Fevil.zip", archive(a="b"), 400, "bad-package-name"),
        ("/api/packages/gcs/.hidden.zip", archive(a="b"), 400, "bad-package-name"),
        ("/api/packages/gcs/x.zip", b"not a zip", 400, "bad-package"),
        ("/api/packages/gcs/x.tar.gz", b"\x1f\x8bbroken", 400, "bad-package"),
        ("/api/packages/gcs/x.zip", b"\0" * 60_000, 413, "too-large"),
        ("/api/packages/gcs/x.zip", archive(a="0" * 300_000), 413, "too-large"),
    ],
)
async def test_bad_packages(tmp_path: Path, path: str, data: bytes, status: int, code: str) -> None:
    async with world(tmp_path, max_package=50_000, max_unpacked=100_000) as door:
        answer = await door.client.put(path, data=data, headers=door.as_("ops"))
        await problem(answer, status, code)
        assert not list((tmp_path / "packages").glob("*")), "nothing may be left behind"


async def test_a_bomb_is_refused_by_what_it_unpacks_to(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("zeros", b"\0" * 3_000_000)
    assert len(packed.getvalue()) < 50_000
    async with world(tmp_path, max_package=50_000, max_unpacked=1_000_000) as door:
        answer = await door.client.put(PACKAGE, data=packed.getvalue(), headers=door.as_("ops"))
        await problem(answer, 413, "package-unpacks-too-large")


async def test_a_chunked_upload_over_the_limit_stops(tmp_path: Path) -> None:
    """Without a Content-Length the limit still holds."""

    async def endless() -> Any:
        for _ in range(100):
            yield b"\0" * 10_000

    async with world(tmp_path, max_package=50_000) as door:
        answer = await door.client.put(PACKAGE, data=endless(), headers=door.as_("ops"))
        await problem(answer, 413, "too-large")
        assert not list((tmp_path / "packages").glob("*"))


async def test_old_packages_go_unless_a_job_needs_them(tmp_path: Path) -> None:
    """The spool does not grow for ever, and a job that waits for days still finds its working_dir."""
    async with world(tmp_path, package_keep_s=1000) as door:
        app = door.client.app
        assert app is not None
        ours = app[CONTEXT]
        for name in ("needed", "idle"):
            path = f"/api/packages/gcs/{name}.zip"
            assert (
                await door.client.put(path, data=archive(name=name), headers=door.as_("ops"))
            ).status == 200
        job_id = await door.submit(runtime_env={"working_dir": "gcs://needed.zip"})
        assert prune(ours, time.time() + 900) == 0
        assert prune(ours, time.time() + 1100) == 1
        (kept,) = door.control.views[job_id].submission.packages.values()
        assert Path(kept).is_file()
        assert (await door.client.get("/api/packages/gcs/idle.zip", headers=door.as_("ops"))).status == 404
        door.control.to(job_id, api.SUCCEEDED)
        assert prune(ours, time.time() + 1100) == 1


def filled(size: int, seed: int) -> bytes:
    """An archive of a little more than `size` bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        out.writestr("data", random.Random(seed).randbytes(size))
    return packed.getvalue()


async def test_all_packages_together_are_bounded(tmp_path: Path) -> None:
    """Those that no job needs make room, if nobody has just used them; then uploads are refused until jobs end."""
    async with world(tmp_path, max_spool=100_000, max_package=70_000) as door:

        async def put(name: str, size: int, seed: int, **more: Any) -> Any:
            data = filled(size, seed)
            return await door.client.put(
                f"/api/packages/gcs/{name}.zip", data=data, headers=door.as_("ops"), **more
            )

        assert (await put("needed", 60_000, 1)).status == 200
        job_id = await door.submit(runtime_env={"working_dir": "gcs://needed.zip"})
        assert (await put("fresh", 30_000, 2)).status == 200
        refused = await put("more", 30_000, 3)
        assert int(refused.headers["Retry-After"]) >= 1
        await problem(refused, 507, "spool-full")
        assert len([one for one in (tmp_path / "packages").glob("*") if one.is_file()]) == 2, (
            "nothing half is left"
        )

        assert door.client.app is not None
        ours = door.client.app[CONTEXT]
        for file in (tmp_path / "packages").glob("_ray_pkg_*"):
            os.utime(file, (500, 500))
        await problem(await put("more", 30_000, 3), 507, "spool-full")  # it was just tried to make room
        ours.made_room_s = float("-inf")
        assert (await put("more", 30_000, 3)).status == 200
        (kept,) = door.control.views[job_id].submission.packages.values()
        assert Path(kept).is_file(), "a job waits for it"
        assert (await door.client.get("/api/packages/gcs/fresh.zip", headers=door.as_("ops"))).status == 404


async def test_uploads_under_way_count(tmp_path: Path) -> None:
    """By what they are to have, or, where that is not known, by what they have."""
    gate = asyncio.Event()

    async def slowly(data: bytes) -> AsyncIterator[bytes]:
        yield data[:1000]
        await gate.wait()
        yield data[1000:]

    async def at_once(data: bytes) -> AsyncIterator[bytes]:
        yield data

    one, two = filled(60_000, 1), filled(60_000, 2)
    spool = Spool(tmp_path, 1 << 20, 1 << 20, max_total=100_000)
    first = asyncio.create_task(spool.put("ops", "one.zip", slowly(one), len(one)))
    async with asyncio.timeout(10):
        while not spool.under_way:
            await asyncio.sleep(0.01)
    with pytest.raises(SpoolFull, match="spool_limit_mib"):
        await spool.put("ops", "two.zip", at_once(two), len(two))
    gate.set()
    await first
    assert spool.under_way == {} and spool.room(100_000 - len(one)) and not spool.room(100_001 - len(one))
    with pytest.raises(SpoolFull):
        await spool.put("ops", "two.zip", at_once(two))  # its size was not said
    assert len(list(tmp_path.glob("*.zip"))) == 1 and not list(tmp_path.glob(".incoming-*"))


async def test_logs_join_the_attempts(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        job_id = await door.submit()
        for text in (b"first\r\n", b"second\n"):
            door.dashboard.scripts[door.control.attempt(job_id)] = Script(text, ended=True)
            door.control.end_attempt(job_id)
        answer = await door.client.get(f"/api/jobs/{job_id}/logs", headers=door.as_("ops"))
        assert (await answer.json())["logs"] == (
            f"[moorage] attempt 1 ({job_id}-1)\nfirst\n[moorage] attempt 2 ({job_id}-2)\nsecond\n"
        )
        assert door.dashboard.refused == 0


async def test_a_flooded_log_keeps_head_and_tail(tmp_path: Path) -> None:
    """50 MB of log answer with the documented limit: its head, its tail, and how much is missing."""
    async with world(tmp_path, log_head=10_000, log_tail=30_000) as door:
        job_id = await door.submit()
        lines = b"".join(b"line %07d of a flood of words\n" % n for n in range(1_500_000))
        door.dashboard.scripts[door.control.attempt(job_id)] = Script(lines, ended=True)
        answer = await door.client.get(f"/api/jobs/{job_id}/logs", headers=door.as_("ops"))
        logs = (await answer.json())["logs"]
        head, marker, tail = logs.partition("[moorage] ... ")
        assert head.startswith("line 0000000 ") and head.endswith("words\n\n") and len(head) <= 10_001
        assert tail.endswith("line 1499999 of a flood of words\n")
        missing = int(marker and tail.split(" ")[0].replace(",", ""))
        shown = len(head) - 1 + len(tail.partition("...\n\n")[2])
        assert missing + shown == len(lines)
        assert len(logs) < 45_000


async def test_the_ray_token_never_reaches_a_client(tmp_path: Path) -> None:
    """G3: neither an answer nor a log line of ours holds it."""
    async with world(tmp_path) as door:
        job_id = await door.submit()
        door.dashboard.scripts[door.control.attempt(job_id)] = Script(b"x\n", ended=True)
        for path in (f"/api/jobs/{job_id}", f"/api/jobs/{job_id}/logs", "/api/version", "/moorage/v1/status"):
            answer = await door.client.get(path, headers=door.as_("ops"))
            assert RAY_TOKEN not in await answer.text() + str(answer.headers)
        written = (tmp_path / "logs" / "access.log").read_text()
        assert RAY_TOKEN not in written and "ops-token" not in written
        assert '"who": "ops"' in written


async def test_owners_with_similar_names_share_no_package(tmp_path: Path) -> None:
    """S10: a team's name may hold a dot: what `a.b` uploads is not what `a_b` submits."""

    async def sent() -> AsyncIterator[bytes]:
        yield archive(**{"main.py": "print(1)"})

    spool = Spool(tmp_path, 1 << 20, 1 << 20)
    await spool.put("a.b", "_ray_pkg_0.zip", sent())
    assert spool.locate("a.b", "_ray_pkg_0.zip") is not None
    for other in ("a_b", "a-b", "a/b", "..", "A.b"):
        assert spool.locate(other, "_ray_pkg_0.zip") is None


async def test_a_broken_upload_does_not_stay(tmp_path: Path) -> None:
    """A front door that was killed while it took a package leaves a part of it; names of pruned content go too."""

    async def sent() -> AsyncIterator[bytes]:
        yield archive(a="b")

    spool = Spool(tmp_path, 1 << 20, 1 << 20)
    part = tmp_path / ".incoming-x"
    part.write_bytes(b"half of it")
    os.utime(part, (500, 500))
    assert spool.prune((), 100, broken_before_s=400) == 0, "bytes still come"
    assert spool.prune((), 100, broken_before_s=600) == 1 and not part.exists()
    kept = await spool.put("ops", "_ray_pkg_0.zip", sent())
    await spool.put("ops", "_ray_pkg_1.zip", sent())
    for file in [kept, *tmp_path.glob("names/*/*")]:
        os.utime(file, (500, 500))
    assert spool.prune({kept.name}, 600) == 0 and len(list(tmp_path.glob("names/*/*"))) == 2
    assert spool.prune((), 600) == 1 and not list(tmp_path.glob("names/*/*"))


async def test_a_name_that_a_power_failure_tore_is_uploaded_again(tmp_path: Path) -> None:
    """The client uploads what is not there: the spool's own folder was, and no job of that package could run."""

    async def sent() -> AsyncIterator[bytes]:
        yield archive(a="b")

    spool = Spool(tmp_path, 1 << 20, 1 << 20)
    await spool.put("ops", "_ray_pkg_0.zip", sent())
    (name,) = tmp_path.glob("names/*/*")
    for torn in (b"", b"\0\xff"):
        name.write_bytes(torn)
        assert spool.locate("ops", "_ray_pkg_0.zip") is None
    await spool.put("ops", "_ray_pkg_0.zip", sent())
    assert spool.locate("ops", "_ray_pkg_0.zip") is not None
