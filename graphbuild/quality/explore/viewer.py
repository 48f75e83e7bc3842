"""The viewer, embedding-atlas: a program of its own that is started, or asked for a static site, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from graphbuild.errors import OptionError, ResourceError

PROGRAM = "embedding-atlas"
HINT = "uvx 'embedding-atlas<0.24'"
"""Versions from 0.24 draw with WebGPU alone; those before also with WebGL, which every browser has."""


def find_viewer() -> str | None:
    """Return the program beside this Python, or on the path; None if it is not installed."""
    beside = Path(sys.executable).with_name(PROGRAM)
    return str(beside) if beside.exists() else shutil.which(PROGRAM)


def viewer_arguments(*, images: bool) -> list[str]:
    """Return what the viewer is told about the files of a map; it runs in their folder, so that no path enters a site."""
    arguments = ["atlas.parquet", "--x", "x", "--y", "y", "--text", "text", "--neighbors", "neighbors"]
    # Without a column, PageRank would be computed in Python.
    arguments += ["--pagerank", "in_degree", "--labels", "labels.parquet", "--disable-projection"]
    return [*arguments, "--image", "image"] if images else arguments


def export_site(folder: Path, site: Path, *, images: bool) -> None:
    """Write the map as a static site, which needs no network.

    Raises:
        OptionError: If the viewer is not installed, or the folder holds anything.
        ResourceError: If the viewer fails.
    """
    program = find_viewer()
    if program is None:
        raise OptionError(
            f"--out {site}: the site is written by {PROGRAM}, which is not installed. Install it: `pip install '{PROGRAM}<0.24'`."
        )
    if site.exists() and (not site.is_dir() or any(site.iterdir())):
        raise OptionError(f"--out {site}: exists and is not empty. Choose a new folder.")
    command = [program, *viewer_arguments(images=images), "--export-application", str(site.absolute())]
    command += ["--export-metadata", "state.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ResourceError(f"{PROGRAM} ended with {done.returncode}: {reason}. Try another version of it.")


def start_viewer(program: str, folder: Path, *, images: bool) -> None:
    """Serve the map on this machine until it is stopped."""
    subprocess.run([program, *viewer_arguments(images=images), "--host", "127.0.0.1"], cwd=folder, check=False)
