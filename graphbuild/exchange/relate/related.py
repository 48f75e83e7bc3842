"""The similarity of a graph of metadata, from its stored columns; vectors of text columns are embedded, or kept in shards.

Shape letters: S samples, N texts, C distinct texts of a column, D vector width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graphbuild.embed.encoder_files import find_encoder
from graphbuild.embed.shard import embed_texts
from graphbuild.embed.text.table import Prompts
from graphbuild.exchange.relate.kernels import Embed, Mean, Product, make_kernel
from graphbuild.exchange.relate.spec import KernelSpec
from graphbuild.exchange.relate.values import Values, values_of
from graphbuild.exchange.searched import Scan
from graphbuild.knn.blockwise import Similarity
from graphbuild.store import schemas
from graphbuild.store.digests import digest_json
from graphbuild.store.files import finished, shard_ranges, write_parquet
from graphbuild.store.manifest import Manifest
from graphbuild.store.tables import read_parquet
from graphbuild.system.progress import progress


def related(graph_dir: Path, manifest: Manifest, config: Mapping[str, Any], embed: Embed | None = None) -> Similarity:
    """Return the similarity by which a graph of metadata was made, from its stored columns.

    Args:
        graph_dir: A graph whose text stage is done.
        manifest: Its manifest.
        config: Of its knn stage.
        embed: Makes the vectors of text columns; None: their encoder, which must be there.

    Raises:
        ArtifactError: If a shard of samples cannot be read.
        SourceError: If a taxonomy or encoder is not there any more.
    """
    specs = specs_of(config)
    columns = list(dict.fromkeys(name for spec in specs for name in spec.columns))
    shards = manifest.files("text", schemas.SAMPLES)
    samples = pa.concat_tables([read_parquet(graph_dir / one.path, [schemas.TEXT_ID, *columns]) for one in shards])
    texts_S = samples[schemas.TEXT_ID].to_numpy()
    _, first_N = np.unique(texts_S, return_index=True)
    rows = samples.select(columns).take(pa.array(first_N))
    values = [values_of(rows, spec, str(graph_dir)) for spec in specs]
    return combined(specs, values, np.bincount(texts_S).astype(np.int64), config["rule"], config["weights"], embed or embed_now)


def specs_of(config: Mapping[str, Any]) -> list[KernelSpec]:
    """Return the kernels that the configuration of a stage names."""
    return [KernelSpec(**{**held, "columns": tuple(held["columns"])}) for held in config["kernels"]]


def combined(
    specs: Sequence[KernelSpec],
    values: Sequence[Values],
    counts_N: NDArray[np.integer],
    rule: str,
    weights: Sequence[float],
    embed: Embed,
) -> Similarity:
    """Make the mean or product of the kernels of some columns.

    Args:
        specs: The kernels.
        values: Of each, the value of each of the N texts.
        counts_N: Samples of each text.
        rule: `mean` or `product`.
        weights: Of a mean; they sum to 1.
        embed: Makes the vectors of texts.

    Raises:
        SourceError: If a category is not in its taxonomy.
    """
    parts = [make_kernel(spec, own, counts_N, embed) for spec, own in zip(specs, values, strict=True)]
    if len(parts) == 1:
        return parts[0]
    return Product(parts) if rule == "product" else Mean(parts, weights)


def embed_now(encoder: str, precision: str, texts: list[str]) -> NDArray[np.float16]:
    """Return unit vectors of some texts, (C, D), by the encoder of a name at a precision."""
    with progress("embedding", len(texts), unit="texts") as meter:
        return embed_texts(find_encoder(encoder).with_precision(precision), Prompts(), texts, meter.advance)


@dataclass(frozen=True, slots=True)
class KeptVectors:
    """Vectors of text columns, in shards beside the neighbours until the stage is entered: none is embedded twice."""

    graph_dir: Path
    key: str
    """Of the stage."""
    shard_size: int

    def embed(self, encoder: str, precision: str, texts: list[str]) -> NDArray[np.float16]:
        """Return what `embed_now` does; shards that are there are read."""
        label = digest_json([encoder, precision, texts])[:16]
        parts = []
        for shard in shard_ranges(len(texts), self.shard_size):
            name = f"{schemas.KNN}/vectors-{label}-{shard.index:05d}.parquet"
            if finished(self.graph_dir, name, key=self.key) is None:
                vectors_CD = embed_now(encoder, precision, texts[shard.start : shard.stop])
                kind = schemas.embeddings_schema(vectors_CD.shape[1]).field(schemas.EMBEDDING)
                column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_CD.reshape(-1)), type=kind.type)
                write_parquet(self.graph_dir, name, pa.table([column], schema=pa.schema([kind])), key=self.key)
            held = read_parquet(self.graph_dir / name)[schemas.EMBEDDING].combine_chunks()
            parts.append(held.flatten().to_numpy().reshape(len(shard), -1))
        return np.concatenate(parts)


def scan(root: str, config: Mapping[str, Any], _k: int, key: str) -> Scan:
    """Make what finds the neighbours of a graph of metadata; worker processes can take it with its first two arguments bound."""
    graph_dir = Path(root)
    manifest = Manifest.load(graph_dir)
    kept = KeptVectors(graph_dir, key, manifest.shard_size)
    return Scan(related(graph_dir, manifest, config, kept.embed), manifest.counts["texts"])
