"""Refuse to build from a tree whose layers are not there.

Everything else is in pyproject.toml. `src/moorage/<layer>` are directory links; a checkout without symbolic
links (`core.symlinks=false`, a zip made by some tools) turns them into small text files, and setuptools would
then build an almost empty wheel without a word.
"""

from pathlib import Path

from setuptools import setup

LAYERS = ("cluster", "configs", "kernels", "runtime", "scheduling", "serve", "train")
PACKAGE = Path(__file__).resolve().parent / "src" / "moorage"

broken = [layer for layer in LAYERS if not (PACKAGE / layer / "__init__.py").is_file()]
if broken:
    raise SystemExit(
        f"moorage: src/moorage/{{{','.join(broken)}}} should be directories and are not. "
        "This checkout has no symbolic links: clone with `git clone -c core.symlinks=true`, "
        "or unpack the source archive with a tool that keeps links."
    )

setup()
