"""The web page's files: complete, from here only, open without a token, and never HTML made of text (S8, L6)."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner
from frontdoor_world import world

from moorage.cli import cli
from moorage.runtime.frontdoor import page

FOLDER = Path(page.__file__).parent / "page"


async def test_the_files_are_served_without_a_token_and_the_pool_is_not(tmp_path: Path) -> None:
    async with world(tmp_path) as door:
        for path in sorted(page.PATHS):
            answer = await door.client.get(path)
            assert answer.status == 200, path
            assert answer.headers["Content-Security-Policy"] == page.POLICY
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            again = await door.client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
            assert again.status == 304 and not await again.read()
        assert (await door.client.get("/moorage/v1/status")).status == 401
        assert (await door.client.get("/page/../settings.py")).status in (401, 404)
        assert (await door.client.get("/", headers={"Host": "evil.example"})).status == 403
        assert door.control.authenticated == 0


def test_every_file_of_the_folder_is_served() -> None:
    names = {path.rsplit("/", 1)[1] for path in page.PATHS} - {""} | {"index.html"}
    assert {file.name for file in FOLDER.iterdir()} == names


def test_what_the_files_load_is_here() -> None:
    """`src`, `href` and `import` name files of the page; nothing is fetched from elsewhere."""
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8")
        for found in re.findall(r'(?:src|href)="(/[^"]*)"', text):
            assert found in page.PATHS, (file.name, found)
        for found in re.findall(r'from "\./([^"]+)"', text):
            assert f"/page/{found}" in page.PATHS, (file.name, found)
        elsewhere = [
            url for url in re.findall(r"https?://[^\s\"'`]+", text) if "www.w3.org/2000/svg" not in url
        ]
        assert not elsewhere, (file.name, elsewhere)


def test_no_html_is_made_of_text() -> None:
    """Job ids, entrypoints and messages are other people's text."""
    for file in FOLDER.glob("*.js"):
        text = file.read_text(encoding="utf-8")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        ):
            assert word not in text, (file.name, word)


def test_the_command_prints_the_address(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("MOORAGE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MOORAGE_TOKEN", "abc")
    shown = CliRunner().invoke(cli, ["page"])
    assert shown.output == "http://127.0.0.1:9/#token=abc&to=/\n"
    shown = CliRunner().invoke(cli, ["page", "--no-token", "--json"])
    assert '"http://127.0.0.1:9/#/"' in shown.output
