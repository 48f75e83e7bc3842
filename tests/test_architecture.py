"""Who may import whom, and what a light command must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "polars", "dask", "distributed", "faiss", "sentence_transformers", "numba"}
LIGHT = ["errors", "store.graph", "store.schemas", "targets.assemble", "targets.partition", "system.allocator"]
"""What a process that reads a graph loads."""


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


def test_only_cluster_imports_dask() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for package in ("graphbuild", "train", "pipelines")
        for path in files_of(package)
        if {name.split(".")[0] for name in imports_of(path)} & {"dask", "distributed"}
    }
    assert users == {"graphbuild/system/cluster.py"}


def test_what_reads_a_graph_loads_no_torch_faiss_dask_or_polars() -> None:
    imports = "; ".join(f"import graphbuild.{module}" for module in LIGHT)
    assert not modules_loaded_by(imports) & {"torch", "faiss", "dask", "distributed", "polars"}


@pytest.mark.parametrize("package", ["graphbuild", "train"])
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    assert not modules_loaded_by(f"import {package}") & HEAVY


def commands(package: str) -> list[list[str]]:
    """Every command of a console script, the bare script included."""
    module = __import__(f"{package}.cli", fromlist=["cli"])
    return [[], *([name] for name in sorted(module.cli.commands))]


@pytest.mark.parametrize("package", ["graphbuild", "train"])
def test_every_help_page_opens_and_loads_nothing_heavy(package: str) -> None:
    code = f"from {package}.cli import cli\n" + "".join(
        f"try: cli(args={[*arguments, '--help']!r}, standalone_mode=False)\nexcept SystemExit: pass\n"
        for arguments in commands(package)
    )
    assert not modules_loaded_by(code) & HEAVY


@pytest.mark.parametrize("package", ["graphbuild", "train"])
def test_every_command_and_option_has_help(package: str) -> None:
    module = __import__(f"{package}.cli", fromlist=["cli"])
    for name, command in module.cli.commands.items():
        assert command.help, f"{package} {name} has no help"
        undocumented = [param.name for param in command.params if not param.help]
        assert not undocumented, f"{package} {name}: no help for {undocumented}"
