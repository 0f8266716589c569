"""Where the recorded traces are. They are data that the repository does not carry."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = "MOORAGE_TRACES"
"""Names a folder that holds `openb/` and `philly/`."""


def folder() -> Path:
    """The folder of the traces, else the test skips and says why. A folder that is named must be there."""
    named = os.environ.get(VARIABLE)
    if named:
        assert Path(named).is_dir(), f"{VARIABLE} names {named}, which is no folder"
        return Path(named)
    beside = ROOT.parent / "shared" / "traces"
    if not beside.is_dir():
        pytest.skip(f"no traces here: {VARIABLE} names no folder, and ../shared/traces is not there")
    return beside
