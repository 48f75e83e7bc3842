"""What `graphbuild embed` is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graphbuild.embed.text.policy import NOTES
from graphbuild.embed.text.repeats import COUNTED
from graphbuild.store import schemas
from graphbuild.store.repeats import OnDuplicate
from graphbuild.system.answers import Answer, next_steps
from graphbuild.system.options import DEFAULT_ENCODER

LEFT_OUT = {
    "failed_downloads": "rows whose picture was not downloaded, left out",
    "broken_rows": "rows that could not be read, left out",
    "hidden_files": "hidden files (their names begin with a dot), left out",
    "files_not_pictures": "files that are no pictures, left out",
    COUNTED["first"]: "rows whose sample id came before, left out",
    COUNTED["suffix"]: "rows whose sample id came before, numbered (ID#2, ID#3, ...)",
    "unreadable_pictures": "pictures that cannot be decoded, left out",
}
"""What people are told of what a source left out, or called by another id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """What is embedded and how; what decides the bytes enters the manifest."""

    dataset: str
    """A name that `graphbuild datasets` lists."""
    sources: tuple[str, ...] = ()
    """Files, folders or globs."""
    caption_column: str | None = None
    """None: a usual name, if there is just one."""
    id_column: str | None = None
    """None: `<file>:<row>`, or the data set's own ids."""
    keep_columns: tuple[str, ...] = ()
    """Source columns copied into samples."""
    columns: tuple[str, ...] = ()
    """Names of the columns of csv and tsv files without a header."""
    images: str | None = None
    """Folder of the pictures, whose paths below it are the sample ids."""
    skip_broken: bool = False
    """Rows that cannot be read are counted and listed, and are no error."""
    vector_column: str | None = None
    """Of data set `vectors`; None: the only column of vectors."""
    embedded: Literal["captions", "images"] = "captions"
    """What the encoder is shown: captions, or, by an image encoder, the pictures."""
    image_column: str | None = None
    """Of Parquet files whose pictures are embedded; None: the only binary column."""
    templates: tuple[str, ...] = ()
    """Prompts for class names; several are averaged."""
    definitions: str | None = None
    """WordNet's `data.noun`, or its folder: class texts are `NAME: DEFINITION`, without a template by default."""
    replacements: tuple[str, ...] = ()
    """`OLD=NEW`, applied to every caption."""
    multi_caption: bool = False
    """Rows that share a sample id are captions of one sample."""
    on_duplicate: OnDuplicate | None = None
    """What becomes of rows whose sample id came before; None: an error, or captions of one sample where the data set has it so."""
    encoder: str = DEFAULT_ENCODER
    """A Sentence Transformer's name or folder, or `hashing:<width>` for tests; of pictures, a name of `image_files`."""
    prompt: str | None = None
    """Put before every text, or the name of a prompt of the encoder's configuration; None: its default."""
    truncate_dim: int | None = None
    """Coordinates kept of each vector, which is then normalised; None: all."""
    trust_remote_code: str | None = None
    """The encoder, named once more by who has read its code and lets it run; None: no code but Sentence Transformers' is."""
    backend: str = "torch"
    """What computes the encoder's transformer: torch, onnx, openvino, or, by measuring them, the fastest of those that are here."""
    backend_file: str | None = None
    """File of another backend than torch in the encoder's folder; None: where the hub has it."""
    attention: Literal["padded", "flash"] = "padded"
    """How the transformer attends: as torch does, or, on a CUDA GPU, by flash attention without padding."""
    precision: str = "auto"
    """float32, bfloat16, float16, or auto."""
    shard_size: int = schemas.SHARD_SIZE
    """Texts a shard, and rows a shard of samples."""
    workers: int | None = None
    """Worker processes on this machine; 0 works in this process; None takes what a calibration finds fastest."""
    scheduler: str | None = None
    """Address of a running Dask scheduler."""
    overwrite: bool = False
    """Build again what was built with other options or from other input."""
    collapse: bool = False
    """Samples of equal given vectors are one text."""
    append: bool = False
    """Add the sources to a graph that is there; only texts that are new are embedded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedResult(Answer):
    """What a graph directory holds after `embed`."""

    graph_dir: Path
    built: tuple[str, ...]
    """Stages that were (re)built; none if everything was there."""
    counts: dict[str, int]
    encoder: dict[str, Any]
    seconds: dict[str, float]
    repeated: str | None = None
    """How often captions repeat, and what that saves, in a line."""

    def summary(self) -> str:
        """Return a few lines for people."""
        counts = self.counts
        done = f"built: {', '.join(self.built)}" if self.built else "nothing to do: it was built with these options already"
        lines = [
            f"{self.graph_dir}: {done}",
            f"{counts['samples']:,} samples, {counts['captions']:,} captions, {counts['texts']:,} texts",
            ", ".join(
                [f"encoder {self.encoder['name']}, {self.encoder['dim']} wide, {self.encoder['precision']}"]
                + [f"attention {attention}" for attention in [self.encoder.get("attention")] if attention]
            ),
        ]
        noted = {
            **NOTES,
            **LEFT_OUT,
            "truncated_captions": f"captions longer than the encoder reads ({self.encoder['max_tokens']} tokens), cut",
        }
        lines += [f"{counts[name]:,} {words}" for name, words in noted.items() if counts.get(name)]
        lines += [self.repeated] if self.repeated else []
        lines.append(next_steps("graphbuild knn", graph_dir=self.graph_dir))
        if unknown := counts.get("unknown_captions"):
            # Last, where it is seen: it may be a reason to begin again.
            lines.append(
                f"{unknown:,} captions of which half the tokens or more are unknown to the encoder: texts of the same known tokens "
                "are one text. For other languages choose a multilingual --encoder"
            )
        return "\n".join(lines)
