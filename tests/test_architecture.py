"""The rules about who may import whom, and that nothing in the program can run code from a file."""

from __future__ import annotations

import ast
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The only files of world_model that stand above world.py and may import it.
ABOVE_WORLD = {"world_model/training/publish.py", "world_model/__init__.py", "world_model/gym.py"}
SERIALISERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
MAX_TRACKED_BYTES = 16 * 1024 * 1024


def _sources(*places: str) -> list[Path]:
    found = []
    for place in places:
        path = ROOT / place
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path] * path.exists()
    return found


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _package(path: Path) -> list[str]:
    return list(path.relative_to(ROOT).parent.parts)


def _imports(tree: ast.AST, package: list[str]) -> Iterator[str]:
    """Dotted names of all that is imported, at any depth; `from a import b` gives "a" and "a.b"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _imports_of(path: Path) -> set[str]:
    return set(_imports(ast.parse(path.read_text(encoding="utf-8")), _package(path)))


def _roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def _is_under(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def _unsafe(tree: ast.AST) -> Iterator[str]:
    """What could run code that is hidden in a file or a text."""
    for name in _imports(tree, []):
        if name.partition(".")[0] in SERIALISERS or name in ("torch.load", "torch.save"):
            yield f"import {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            whole = f"{node.value.id}.{node.attr}"
            if whole in ("torch.load", "torch.save", "builtins.eval", "builtins.exec"):
                yield whole
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not _is_false(node.value):
            yield "allow_pickle"


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_the_model_knows_neither_the_game_nor_the_window() -> None:
    files = _sources("world_model")
    assert files
    bad = [_name(path) for path in files if _roots(_imports_of(path)) & {"game", "main", "pygame"}]
    assert not bad


def test_types_import_nothing_of_the_project() -> None:
    names = _imports_of(ROOT / "world_model/types.py")
    assert not _roots(names) & {"world_model", "game", "main"}


def test_config_imports_only_types() -> None:
    names = {name for name in _imports_of(ROOT / "world_model/config.py") if _is_under(name, "world_model")}
    bad = {name for name in names if not _is_under(name, "world_model.types")} - {"world_model"}
    assert not bad


def test_no_part_imports_the_world() -> None:
    bad = []
    for path in _sources("world_model"):
        if _name(path) in ABOVE_WORLD:
            continue
        for name in _imports_of(path):
            if _is_under(name, "world_model.world") or name == "world_model.load_world":
                bad.append(f"{_name(path)}: {name}")
    assert not bad


def test_pygame_is_imported_in_few_files_all_in_game() -> None:
    users = [
        p for p in _sources("game", "world_model", "tools", "main.py") if "pygame" in _roots(_imports_of(p))
    ]
    # What is drawn, the pads, and the mixer, which must stay out of them: a device's thread runs there.
    assert len(users) <= 5, [_name(path) for path in users]
    assert all(_name(path).startswith("game/") for path in users)


def test_nothing_can_run_code_from_a_file() -> None:
    files = _sources("game", "world_model", "tools", "main.py")
    bad = [f"{_name(p)}: {what}" for p in files for what in _unsafe(ast.parse(p.read_text(encoding="utf-8")))]
    assert not bad


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import os, marshal",
        "def f():\n    import shelve",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "np.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=flag)",
        "eval('1')",
        "run = exec",
    ],
)
def test_the_scan_sees(code: str) -> None:
    assert list(_unsafe(ast.parse(code)))


@pytest.mark.parametrize("code", ["model.eval()", "np.load('x', allow_pickle=False)", "json.load(f)"])
def test_the_scan_lets_pass(code: str) -> None:
    assert not list(_unsafe(ast.parse(code)))


def test_relative_imports_are_resolved() -> None:
    names = set(_imports(ast.parse("from ..world import World\nfrom . import x"), ["world_model", "data"]))
    assert {"world_model.world", "world_model.data.x"} <= names


def test_every_package_is_installed() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    on_disk = {".".join(_package(path)) for path in _sources("game", "world_model")}
    assert on_disk <= listed
    assert all((ROOT / name.replace(".", "/")).is_dir() for name in listed - {"reverie_worlds"})


def test_no_tracked_file_is_large() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = [ROOT / name for name in listing.decode().split("\0") if name]
    large = [_name(p) for p in paths if p.is_file() and p.stat().st_size > MAX_TRACKED_BYTES]
    assert not large
