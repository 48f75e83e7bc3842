"""The encoder that a graph was built with, found again; one that needs files is looked for only where the user named it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from graphbuild.datasets.formats.vectors import NAME as VECTORS
from graphbuild.embed.encoder_files import EncoderSpec, comes_with_the_program, find_encoder
from graphbuild.errors import ArtifactMismatch, OptionError
from graphbuild.store.manifest import Manifest

FUSED = "fused"
"""What stands for the encoder of a graph that was made of several."""


def graph_encoder(graph_dir: Path, manifest: Manifest, named: str | None, trust: str | None) -> EncoderSpec:
    """Find the encoder that a graph was built with; one that needs files is looked for only where the user named it.

    Args:
        graph_dir: The graph.
        manifest: Its manifest.
        named: Name or folder that the user gave; None: none.
        trust: The encoder once more, where its own code may run.

    Raises:
        OptionError: If the encoder must be named, or there is none.
        ArtifactMismatch: If the one at hand is not the one that the graph was built with.
    """
    recorded = manifest.encoder
    if named is not None and recorded["name"] == VECTORS:
        # Whose vectors they are is not recorded: who names the encoder knows.
        return find_encoder(named, trust=trust)
    if recorded["name"] in (VECTORS, FUSED):
        raise OptionError(
            f"{graph_dir}: was made from given vectors, so there is no encoder for other texts. Give a text that it holds "
            "(a sample id, or a caption where a column of them was named), --id, or the --vector of a file; of given vectors "
            "(not of fused ones) the text encoder that made them may be named with --encoder."
        )
    name = named or recorded["name"]
    if named is None and not comes_with_the_program(name):
        raise OptionError(
            f"{graph_dir} was built with the encoder {name}, and a graph's word alone loads no encoder. If you trust that one, "
            f"name it: --encoder {shlex.quote(name)}. A text that the graph holds needs none."
        )
    if recorded.get("trust_remote_code") and trust is None:
        raise OptionError(
            f"{graph_dir} was built with {recorded['name']}, which runs code of its own. If you have read it, name the encoder "
            f"once more: --trust-remote-code {shlex.quote(name)}."
        )
    file = recorded.get("backend_file")
    spec = find_encoder(name, trust=trust, beside=[file] if file else []).with_precision(recorded["precision"])
    spec = spec.with_use(recorded.get("prompt"), recorded.get("truncate_dim"))
    spec = spec.with_backend(recorded.get("backend", "torch"), file)
    require_same(graph_dir, recorded, name, spec.sha256)
    if spec.backend_sha256 != recorded.get("backend_sha256"):
        raise ArtifactMismatch(f"{graph_dir}: built with another {file} of {name} than is there now. Restore that file.")
    return spec


def require_same(graph_dir: Path, recorded: dict[str, Any], name: str, sha256: str) -> None:
    """Compare the weights of an encoder with those that the manifest records.

    Raises:
        ArtifactMismatch: If they are others.
    """
    if sha256 != recorded["sha256"]:
        raise ArtifactMismatch(
            f"{graph_dir}: built with {recorded['name']} of sha256 {recorded['sha256'][:12]}, but {name} has sha256 "
            f"{sha256[:12]}: their vectors do not compare. Name the encoder that it was built with (--encoder), or run "
            "`graphbuild embed --overwrite`."
        )
