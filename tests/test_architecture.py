"""Who may import whom, and what a light command must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "polars", "dask", "distributed", "faiss", "sentence_transformers", "numba"}
SHARED_WITH_TRAIN = {"allocator", "graph", "targets", "partition", "schemas", "errors"}


def imports_of(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def files_of(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package} holds no files"
    return found


def modules_loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return {line.split(".")[0] for line in done.stdout.splitlines()}


def test_train_imports_only_the_shared_modules_of_graphbuild() -> None:
    for path in files_of("train"):
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith("graphbuild.")}
        assert used <= SHARED_WITH_TRAIN, f"{path.relative_to(ROOT)} imports graphbuild.{used - SHARED_WITH_TRAIN}"


def test_graphbuild_never_imports_train_and_nothing_imports_pipelines() -> None:
    for path in files_of("graphbuild"):
        assert not {name for name in imports_of(path) if name.split(".")[0] in {"train", "pipelines"}}, path
    for path in files_of("train"):
        assert not {name for name in imports_of(path) if name.split(".")[0] == "pipelines"}, path


def test_only_cluster_imports_dask() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for package in ("graphbuild", "train", "pipelines")
        for path in files_of(package)
        if {name.split(".")[0] for name in imports_of(path)} & {"dask", "distributed"}
    }
    assert users == {"graphbuild/cluster.py"}


@pytest.mark.parametrize("module", sorted(name for name in SHARED_WITH_TRAIN if (ROOT / f"graphbuild/{name}.py").exists()))
def test_modules_shared_with_train_load_no_torch_faiss_dask_or_polars(module: str) -> None:
    assert not modules_loaded_by(f"import graphbuild.{module}") & {"torch", "faiss", "dask", "distributed", "polars"}


@pytest.mark.parametrize("package", ["graphbuild", "train"])
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    assert not modules_loaded_by(f"import {package}") & HEAVY


def commands(package: str) -> list[list[str]]:
    """Every command of a console script, the bare script included."""
    module = __import__(f"{package}.cli", fromlist=["cli"])
    return [[], *([name] for name in sorted(module.cli.commands))]


@pytest.mark.parametrize("package", ["graphbuild", "train"])
def test_every_help_page_opens_and_loads_nothing_heavy(package: str) -> None:
    for arguments in commands(package):
        code = (
            f"from {package}.cli import cli\n"
            f"try: cli(args={[*arguments, '--help']!r}, standalone_mode=False)\n"
            "except SystemExit: pass"
        )
        assert not modules_loaded_by(code) & HEAVY, arguments


@pytest.mark.parametrize("package", ["graphbuild", "train"])
def test_every_command_and_option_has_help(package: str) -> None:
    module = __import__(f"{package}.cli", fromlist=["cli"])
    for name, command in module.cli.commands.items():
        assert command.help, f"{package} {name} has no help"
        undocumented = [param.name for param in command.params if not param.help]
        assert not undocumented, f"{package} {name}: no help for {undocumented}"
