"""What this machine offers, as a bug report needs it: versions, devices, number formats, threads, and shared folders."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from graphbuild.system.answers import Answer, plain, render, show, table
from graphbuild.system.memory import free_memory

_PACKAGES = (
    "xclr-graph",
    "torch",
    "torchvision",
    "sentence-transformers",
    "transformers",
    "faiss-gpu",
    "faiss-cpu",
    "numpy",
    "numba",
    "pyarrow",
    "polars",
    "dask",
    "distributed",
    "scipy",
    "timm",
)
_OPTIONAL = ("umap-learn", "embedding-atlas", "tensorboard", "webdataset", "lightly", "lightning", "accelerate", "open-clip-torch")
_VARIABLES = (
    "GRAPHBUILD_DIR",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMBA_CACHE_DIR",
    "CUDA_VISIBLE_DEVICES",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)
_DIM = 384


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis(Answer):
    """What was found, by section; every value is a word, a number or a short sentence."""

    sections: dict[str, dict[str, Any]]
    problems: tuple[str, ...]
    """What will not work, and what to do."""

    def summary(self) -> str:
        """Return tables for people, problems first."""
        tables = {}
        for title, entries in self.sections.items():
            made = table(("", "value"))
            made.show_header = False
            for name, value in entries.items():
                made.add_row(plain(name), plain(show(value)))
            tables[title] = made
        return render("\n".join([f"problem: {one}" for one in self.problems] or ["no problem found"]), tables)


def diagnose(folder: Path | None = None) -> Diagnosis:
    """Look at the machine, in a few seconds.

    Args:
        folder: Where graphs are to lie; what its file system can do is tried there. None: the working directory.
    """
    problems: list[str] = []
    place = folder or Path.cwd()
    sections = {
        "machine": _machine(),
        "packages": {name: _version(name) for name in (*_PACKAGES, *_OPTIONAL) if _version(name) or name == "torch"},
        "devices": _devices(problems),
        "number formats of the search": _formats(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        f"folder {place}": _folder(place, problems),
    }
    return Diagnosis(sections=sections, problems=tuple(problems))


def _machine() -> dict[str, Any]:
    from graphbuild.system.cores import available_cores

    return {
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "processor": _processor(),
        "cores": available_cores(),
        "free memory": f"{free_memory() / 2**30:.1f} GiB",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    wanted = ("avx2", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "amx_fp16")
    flags = [flag for flag in wanted if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', 'unknown')} ({', '.join(flags) or 'no wide vectors'})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices(problems: list[str]) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"torch threads": torch.get_num_threads(), "torch built for": torch.version.cuda or "CPU"}
    if not torch.cuda.is_available():
        found["GPU"] = "none that torch finds"
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        found[f"GPU {number}"] = f"{properties.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        problems.append(f"torchvision does not load ({error}). Install torch and torchvision of one build.")
    try:
        import faiss

        found["faiss GPUs"] = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    except ImportError as error:
        problems.append(f"faiss does not load ({error}). Install faiss-cpu or faiss-gpu.")
    return found


def _formats() -> dict[str, Any]:
    from graphbuild.knn.engines.widths import fastest_format

    return {f"fastest for {_DIM} coordinates": fastest_format(_DIM)}


def _folder(place: Path, problems: list[str]) -> dict[str, Any]:
    """Try what a graph directory needs of its file system: writing, renaming onto a file, and mapping it."""
    import mmap

    try:
        with tempfile.TemporaryDirectory(prefix=".graphbuild-doctor-", dir=place) as name:
            one, other = Path(name) / "one", Path(name) / "other"
            one.write_bytes(b"1" * mmap.PAGESIZE)
            other.write_bytes(b"2")
            one.replace(other)
            with other.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                works = mapped[0] == ord("1")
    except OSError as error:
        problems.append(f"{place}: {error.strerror or error}. Graphs cannot be written there: choose another folder.")
        return {"writing, renaming, mapping": "does not work"}
    return {"writing, renaming, mapping": "works" if works else "does not work"}
