"""Every column of the graph directory, spelled here and nowhere else.

Shape letters: N texts, D embedding width, K neighbours stored, R sketch width.
"""

from __future__ import annotations

import pyarrow as pa

FORMAT_VERSION = 2
"""Of the graph directory: where things lie."""
CONTENT_VERSION = 1
"""Of the files themselves: raised, everything is made again."""
SHARD_SIZE = 65_536
"""Texts a shard, unless the user says otherwise."""
DEFAULT_SKETCH_DIM = 64
EXCHANGEABLE = 1e-6
"""Pairs whose similarities differ by less count as equal: the definition of exact."""

# Folders of the graph directory, one per stage.
TEXTS = "texts"
COUNTS = "counts"
SAMPLES = "samples"
LOOKUP = "lookup"
EMBEDDINGS = "embeddings"
KNN = "knn"
RESCORED = "rescored"
PARTITION = "partition"
TOKENIZER = "tokenizer"
REPORT = "report"
IMAGES = "images"
INDEX_FILE = "index.faiss"
MANIFEST_FILE = "graph.json"

TEXT_ID = "text_id"
TEXT = "text"
TEXT_HASH = "text_hash"
SAMPLE_COUNT = "sample_count"
CAPTION_COUNT = "caption_count"
SAMPLE_ID = "sample_id"
SAMPLE_HASH = "sample_hash"
EMBEDDING = "embedding"
NEIGHBOR_IDS = "neighbor_ids"
SIMILARITIES = "similarities"
STORED_SIMILARITIES = "stored_similarities"
SKETCH = "sketch"
SKETCH_SCALE = "sketch_scale"
SAMPLE_ROW = "sample_row"
CHUNK = "chunk"
KEEP = "keep"
"""Of the file of a curation, which `graphbuild subset` takes: whether a sample is kept."""

TEXTS_SCHEMA = pa.schema(
    [
        pa.field(TEXT_ID, pa.int32(), nullable=False),
        pa.field(TEXT, pa.string(), nullable=False),
        pa.field(TEXT_HASH, pa.uint64(), nullable=False),
    ]
)
COUNTS_SCHEMA = pa.schema([pa.field(name, pa.int32(), nullable=False) for name in (TEXT_ID, SAMPLE_COUNT, CAPTION_COUNT)])
"""Of each text, the different samples that have it, and their captions; the last is missing in early graphs."""
SAMPLES_SCHEMA = pa.schema(
    [
        pa.field(SAMPLE_ID, pa.string(), nullable=False),
        pa.field(SAMPLE_HASH, pa.uint64(), nullable=False),
        pa.field(TEXT_ID, pa.int32(), nullable=False),
    ]
)
"""Kept source columns follow these three."""
PARTITION_SCHEMA = pa.schema([pa.field(SAMPLE_ROW, pa.int64(), nullable=False), pa.field(CHUNK, pa.int32(), nullable=False)])
"""A row a sample: the row of the samples table where it first stands, ascending, and its chunk."""

LOOKUP_HASHES_SCHEMA = pa.schema(
    [pa.field(SAMPLE_HASH, pa.uint64(), nullable=False), pa.field(SAMPLE_ROW, pa.int64(), nullable=False)]
)
"""Sorted by hash, then row: where each sample row's id is."""
LOOKUP_IDS_SCHEMA = pa.schema(
    [pa.field(SAMPLE_ID, pa.large_string(), nullable=False), pa.field(TEXT_ID, pa.int32(), nullable=False)]
)
"""The samples table's own order."""


def embeddings_schema(dim: int) -> pa.Schema:
    """Return the columns of an embedding shard; `dim` is D."""
    return pa.schema(
        [
            pa.field(TEXT_ID, pa.int32(), nullable=False),
            pa.field(TEXT_HASH, pa.uint64(), nullable=False),
            pa.field(EMBEDDING, pa.list_(pa.field("item", pa.float16(), nullable=False), dim), nullable=False),
        ]
    )


def knn_schema(k: int, sketch_dim: int) -> pa.Schema:
    """Return the columns of a neighbour shard: K ids and similarities, and R sketch bytes; no sketch columns where R = 0."""
    fields = [
        pa.field(TEXT_ID, pa.int32(), nullable=False),
        pa.field(NEIGHBOR_IDS, pa.list_(pa.field("item", pa.int32(), nullable=False), k), nullable=False),
        pa.field(SIMILARITIES, pa.list_(pa.field("item", pa.float16(), nullable=False), k), nullable=False),
    ]
    if sketch_dim:
        fields += [
            pa.field(SKETCH, pa.list_(pa.field("item", pa.int8(), nullable=False), sketch_dim), nullable=False),
            pa.field(SKETCH_SCALE, pa.float32(), nullable=False),
        ]
    return pa.schema(fields)


def rescored_schema(top: int) -> pa.Schema:
    """Return the columns of a rescored shard: a neighbour shard's without sketches, and what knn stores of the pairs."""
    kind = pa.list_(pa.field("item", pa.float16(), nullable=False), top)
    return knn_schema(top, 0).append(pa.field(STORED_SIMILARITIES, kind, nullable=False))


def part_name(folder: str, index: int) -> str:
    """Return the path of shard `index` of a stage, relative to the graph directory."""
    return f"{folder}/part-{index:05d}.{'arrow' if folder in (KNN, RESCORED) else 'parquet'}"
