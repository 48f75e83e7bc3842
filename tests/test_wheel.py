"""The built wheel in an empty environment, outside the checkout: the commands, a graph of scenes, and a loop of one's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("graphbuild", "train", "pipelines", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path, timeout: float = 900) -> str:
    """Output of a command that knows nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def uv() -> str:
    found = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("uv is not installed")
    return found


@pytest.fixture(scope="module")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Of a copy: building writes beside the sources.
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    run(uv, "build", "--quiet", "--wheel", "--out-dir", source / "dist", source, cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def binaries(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    run(uv, "venv", "--quiet", "--python", sys.executable, folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    run(uv, "pip", "install", "--quiet", "--python", python, "--constraint", ROOT / "requirements.lock", wheel, cwd=folder)
    return python.parent


def test_wheel_holds_the_packages_with_their_types_and_not_the_study(wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(wheel, tmp_path, "zip")
    for package in ("graphbuild", "train"):
        assert (tmp_path / package / "py.typed").is_file()
    # Compiled code of numba is kept beside the sources, and is no part of them.
    files = {path.relative_to(ROOT) for name in ("graphbuild", "train") for path in (ROOT / name).rglob("*") if path.is_file()}
    expected = {path for path in files if "__pycache__" not in path.parts}
    assert {path for path in expected if not (tmp_path / path).is_file()} == set()
    assert not (tmp_path / "pipelines/study").exists()


def test_installed_commands_graph_and_loop_work_outside_the_checkout(binaries: Path, tmp_path: Path) -> None:
    for command in ("graphbuild", "train"):
        assert run(binaries / command, "--help", cwd=tmp_path).startswith("Usage:")
    run(binaries / "graphbuild", "embed", "--dataset", "scenes", "--source", "train=200,val=1", cwd=tmp_path)
    run(binaries / "graphbuild", "knn", cwd=tmp_path)
    table = pq.read_table(tmp_path / "graphs/scenes/images/train-00000.parquet")
    (tmp_path / "pictures").mkdir()
    for name, image in zip(table["sample_id"].to_pylist(), table["image"].to_pylist(), strict=True):
        (tmp_path / "pictures" / name).write_bytes(image)
    shutil.copy(ROOT / "examples/plain_torch.py", tmp_path / "train.py")
    options = ["--pictures", "pictures", "--graph-dir", "graphs/scenes", "--epochs", "1", "--steps", "2", "--batch-size", "16"]
    assert "epoch 0 step 0 loss" in run(binaries / "python", "train.py", *options, cwd=tmp_path)
    assert (tmp_path / "encoder.pt").is_file()
