"""The house: one import name, layers that import downward, a pure core, and a package that holds all of it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("cluster", "configs", "kernels", "runtime", "scheduling", "serve", "train")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(code: str, cwd: Path, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that imports moorage from this tree and nothing else of it."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    environment["PYTHONPATH"] = str(ROOT / "src")
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def sources(layer: str) -> Iterator[tuple[str, ast.Module]]:
    """(path within the tree, syntax tree) of each module of a root folder."""
    for path in sorted((ROOT / layer).rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(), filename=str(path))


def locked() -> dict[str, Version]:
    """Name -> version of each line of the lock."""
    found = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split(";")[0].split("==")
            found[canonicalize_name(name.strip())] = Version(version.strip())
    return found


def requirements() -> Iterator[tuple[str, Requirement]]:
    """(extra or "", requirement) of all that pyproject.toml names, ours through each other left out."""
    for text in PROJECT["dependencies"]:
        yield "", Requirement(text)
    for extra, texts in PROJECT["optional-dependencies"].items():
        for text in texts:
            if (requirement := Requirement(text)).name != "moorage":
                yield extra, requirement


def test_every_layer_is_linked_and_the_links_lead_home() -> None:
    for layer in LAYERS:
        link = ROOT / "src" / "moorage" / layer
        assert link.is_symlink() and os.readlink(link) == f"../../{layer}"
        assert (link / "__init__.py").samefile(ROOT / layer / "__init__.py")


@pytest.mark.packaging
def test_a_root_folder_does_not_import_under_its_bare_name() -> None:
    """A user's own `train.py` must never meet ours: from the repository's root each bare name says where to look."""
    names = repr(LAYERS)
    code = (
        "import importlib\n"
        f"for name in {names}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError as error: print(name, '|', error)\n"
        "    else: print(name, '| imported')\n"
    )
    done = python(code, ROOT)
    assert done.returncode == 0, done.stderr
    answers = dict(line.split(" | ", 1) for line in done.stdout.splitlines())
    assert set(answers) == set(LAYERS)
    for name, answer in answers.items():
        assert f"moorage.{name}" in answer, f"import {name}: {answer}"


@pytest.mark.packaging
def test_a_users_own_train_module_wins(tmp_path: Path) -> None:
    """S9: in a user's folder `import train` is the user's, beside `import moorage.train`."""
    (tmp_path / "train.py").write_text("MINE = 'yes'\n")
    done = python("import moorage.train, train; print(train.MINE, moorage.train.__name__)", tmp_path)
    assert done.stdout.split() == ["yes", "moorage.train"], done.stderr


@pytest.mark.packaging
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("moorage", ("ray", "sqlalchemy", "pydantic", "numpy", "aiohttp")),
        ("moorage.scheduling", ("ray", "sqlalchemy", "pydantic", "aiohttp", "torch")),
        ("moorage.kernels", ("ray", "sqlalchemy", "pydantic", "aiohttp", "torch")),
        ("moorage.errors", ("ray", "sqlalchemy", "pydantic", "numpy")),
        ("moorage.configs", ("ray", "sqlalchemy", "torch")),
        ("moorage.cluster.backend", ("ray", "sqlalchemy", "torch")),
        ("moorage.cluster.binding", ("ray", "sqlalchemy", "torch")),
        ("moorage.runtime.client", ("ray", "sqlalchemy", "pydantic", "fastapi", "aiohttp", "numpy")),
    ],
)
def test_an_import_brings_no_more_than_it_may(module: str, absent: tuple[str, ...], tmp_path: Path) -> None:
    """With every module below it: the loaded ones are asked, so a lazy import elsewhere cannot hide."""
    code = (
        "import importlib, pkgutil, sys\n"
        f"root = importlib.import_module({module!r})\n"
        f"if {module!r} in ('moorage.scheduling', 'moorage.kernels'):\n"
        "    for found in pkgutil.walk_packages(root.__path__, root.__name__ + '.'):\n"
        "        importlib.import_module(found.name)\n"
        f"print(*sorted(set({absent!r}) & set(sys.modules)))\n"
    )
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.packaging
def test_the_control_plane_loads_without_ray(tmp_path: Path) -> None:
    """G6: a Ray driver dies with the GCS; the processes that must not die import all of theirs, and no Ray."""
    code = (
        "import importlib, pkgutil, sys\n"
        "for name in ('control', 'frontdoor', 'pool'):\n"
        "    root = importlib.import_module('moorage.runtime.' + name)\n"
        "    for found in pkgutil.walk_packages(root.__path__, root.__name__ + '.'):\n"
        "        if '__main__' in found.name or '.migrations.' in found.name: continue\n"
        "        importlib.import_module(found.name)\n"
        "print(*sorted({'ray', 'torch', 'pandas'} & set(sys.modules)))\n"
    )
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.packaging
def test_the_pool_needs_no_extra(tmp_path: Path) -> None:
    """`pip install moorage` without extras runs the pool's side: whatever else is installed here cannot be imported."""
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import lock\n"
        "project = lock.tomllib.loads((lock.ROOT / 'pyproject.toml').read_text())['project']\n"
        "core = {'moorage', *lock.closure(project, ())}\n"
        "owners = lock.metadata.packages_distributions()\n"
        "class OnlyCore:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        owned = {lock.canonicalize_name(n) for n in owners.get(name.partition('.')[0], ())}\n"
        "        if owned and not owned & core: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, OnlyCore())\n"
        "assert 'scikit-learn' not in core\n"
        "for name in ('control', 'frontdoor', 'pool', 'commands'):\n"
        "    root = importlib.import_module('moorage.runtime.' + name)\n"
        "    for found in pkgutil.walk_packages(root.__path__, root.__name__ + '.'):\n"
        "        if '__main__' in found.name or '.migrations.' in found.name: continue\n"
        "        importlib.import_module(found.name)\n"
        "import moorage.cli\n"
    )
    done = python(code, tmp_path, arguments=[str(ROOT / ".ci")])
    assert done.returncode == 0, done.stderr


def test_the_core_draws_no_numbers_and_touches_nothing() -> None:
    """What an import contract cannot see: numpy.random, open() and print() in scheduling and kernels."""
    faults = []
    for layer in ("scheduling", "kernels"):
        for path, tree in sources(layer):
            for node in ast.walk(tree):
                attribute = isinstance(node, ast.Attribute) and ast.unparse(node) in (
                    "np.random",
                    "numpy.random",
                )
                called = (
                    node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
                )
                if attribute or called in ("open", "print", "input", "exec", "eval"):
                    faults.append(f"{path}:{node.lineno} {ast.unparse(node)[:60]}")
    assert not faults


def test_nothing_loads_weights_that_could_run_code() -> None:
    """G4: torch.load only of tensors; the linter bans pickle and its kin by import."""
    faults = []
    for layer in (*LAYERS, "examples"):
        for path, tree in sources(layer):
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    if given.get("weights_only") != "True":
                        faults.append(f"{path}:{node.lineno}")
    assert not faults


def test_ray_internals_live_in_few_modules() -> None:
    """What is not Ray's public API is in these alone, all behind the check of Ray's version (ADR 12)."""
    private = re.compile(r"^ray\.(_private|_raylet|_common|dashboard|.*\._internal|.*\._private)(\.|$)")
    allowed = {"cluster/rayapi.py", "cluster/rayjobs.py", "cluster/raytrain.py", "cluster/devices.py"}
    faults = []
    for layer in LAYERS:
        for path, tree in sources(layer):
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    continue
                if path not in allowed and any(private.match(name) for name in names):
                    faults.append(f"{path}:{node.lineno} {names[0]}")
    assert not faults


def test_the_ranges_admit_what_the_lock_pins() -> None:
    pins = locked()
    for extra, requirement in requirements():
        if extra == "llm":  # for machines with GPUs; not in the demo's lock
            continue
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{requirement} [{extra}] is not in requirements.lock"
        assert requirement.specifier.contains(pins[name], prereleases=True), (
            f"{requirement} against {pins[name]}"
        )


def test_the_lock_is_exact_and_names_no_place() -> None:
    text = (ROOT / "requirements.lock").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    plain = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; sys_platform == \"linux\")?")
    assert [line for line in lines if not plain.fullmatch(line)] == []
    assert "torch==2.13.0" in lines
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(set(names))


def test_one_version() -> None:
    import moorage

    assert PROJECT["version"] == moorage.__version__
    assert f"## {moorage.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_has_its_reason() -> None:
    """docs/dependencies.md has one line for each requirement that pyproject.toml names."""
    text = (ROOT / "docs" / "dependencies.md").read_text()
    missing = [str(r) for _, r in requirements() if f"| `{r.name}" not in text]
    assert not missing


def copy_of_tree(to: Path) -> Path:
    """The files that git would commit, links kept, in a folder of their own."""
    import mutate

    mutate.copy_tree(ROOT, to)
    return to


def build_wheel(tree: Path, out: Path) -> subprocess.CompletedProcess[str]:
    code = f"import setuptools.build_meta as b; b.build_wheel({str(out)!r})"
    return python(code, tree)


@pytest.mark.packaging
def test_a_wheel_holds_every_layer(tmp_path: Path) -> None:
    """Each Python file and each data file of the root folders is in the wheel, under moorage/."""
    tree, out = copy_of_tree(tmp_path / "tree"), tmp_path / "out"
    out.mkdir()
    done = build_wheel(tree, out)
    assert done.returncode == 0, done.stderr[-2000:]
    [wheel] = out.glob("moorage-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"moorage/__init__.py", "moorage/errors.py", "moorage/py.typed"}
    for layer in LAYERS:
        for path in (tree / layer).rglob("*"):
            if path.suffix in (".py", ".yaml", ".ini", ".mako", ".html", ".css", ".js"):
                wanted.add(f"moorage/{path.relative_to(tree)}")
    assert wanted - names == set()
    assert not [n for n in names if not n.startswith(("moorage/", "moorage-"))]


@pytest.mark.packaging
def test_a_checkout_without_links_does_not_build(tmp_path: Path) -> None:
    """Git without symbolic links leaves small text files: pip would install an almost empty package in silence."""
    tree, out = copy_of_tree(tmp_path / "tree"), tmp_path / "out"
    out.mkdir()
    link = tree / "src" / "moorage" / "train"
    link.unlink()
    link.write_text("../../train")
    done = build_wheel(tree, out)
    assert done.returncode != 0 and "src/moorage/{train}" in done.stderr
    assert not list(out.iterdir())
