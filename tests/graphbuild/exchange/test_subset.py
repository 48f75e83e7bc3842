"""`graphbuild subset`: the samples kept give the graph that embedding them alone would, and everything left out is told."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_embed import column, embed, graphbuild, numbered_captions, shard_digests, write_captions
from helpers_graph import file_times

from graphbuild.errors import OptionError, SourceError
from graphbuild.exchange.subset import SubsetConfig, SubsetResult, subset_graph
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.verify import verify_graph
from graphbuild.store.manifest import Manifest

# Captions come again later, so that dropping their first sample moves their text.
CAPTIONS = [*numbered_captions(40), *reversed(numbered_captions(40)), *numbered_captions(60)[20:]]
URLS = [f"https://example.org/{i}.jpg" for i in range(len(CAPTIONS))]
KEPT = [i for i in range(len(CAPTIONS)) if i % 5 in (1, 2)][3:]


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subset")
    source = write_captions(folder / "all.parquet", {"caption": CAPTIONS, "url": URLS, "row": list(range(len(CAPTIONS)))})
    embed(folder / "g", source, id_column="url", keep_columns=("row",), shard_size=17)
    return folder / "g"


def write_ids(path: Path, ids: list[str]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"url": ids, "width": [1] * len(ids)}), path)
    else:
        path.write_text("\n".join(["url"] * (path.suffix == ".csv") + ids) + "\n", encoding="utf-8")
    return path


def subset(graph_dir: Path, out: Path, ids: list[str], **options: object) -> SubsetResult:
    keep = write_ids(out.with_suffix(".txt"), ids)
    return subset_graph(graph_dir, out, SubsetConfig(keep=keep, **options))  # type: ignore[arg-type]


def test_subset_equals_embedding_the_kept_samples_alone(tmp_path: Path, graph_dir: Path) -> None:
    subset(graph_dir, tmp_path / "s", [URLS[i] for i in reversed(KEPT)])
    rows = {"caption": [CAPTIONS[i] for i in KEPT], "url": [URLS[i] for i in KEPT], "row": KEPT}
    alone = write_captions(tmp_path / "kept.parquet", rows)
    embed(tmp_path / "alone", alone, id_column="url", keep_columns=("row",), shard_size=17)
    assert shard_digests(tmp_path / "s") == shard_digests(tmp_path / "alone")
    counts = Manifest.load(tmp_path / "alone").counts
    assert Manifest.load(tmp_path / "s").counts.items() <= counts.items()


def test_subset_counts_samples_and_captions_of_what_is_kept(tmp_path: Path) -> None:
    captions = {"captions": [["a dog", "a dog"], ["a dog", "a cat"], ["a dog"]], "file": ["1", "2", "3"]}
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", captions), id_column="file")
    subset(tmp_path / "g", tmp_path / "s", ["1", "2"])
    assert column(tmp_path / "s", "counts", "sample_count") == [2, 1]
    assert column(tmp_path / "s", "counts", "caption_count") == [3, 1]


def test_neighbours_are_then_found_as_usual_and_all_is_verified(tmp_path: Path, graph_dir: Path) -> None:
    subset(graph_dir, tmp_path / "s", [URLS[i] for i in KEPT])
    build_knn(tmp_path / "s", KnnConfig(k=5))
    assert verify_graph(tmp_path / "s").samples == len(KEPT)


@pytest.mark.parametrize("form", ["txt", "csv", "parquet"])
def test_ids_come_as_text_csv_or_parquet_and_unknown_ones_are_counted(tmp_path: Path, graph_dir: Path, form: str) -> None:
    keep = write_ids(tmp_path / f"keep.{form}", [URLS[7], "nobody", URLS[90], URLS[7], "NA"])
    result = subset_graph(graph_dir, tmp_path / "s", SubsetConfig(keep=keep))
    assert (result.requested, result.unknown, result.examples) == (4, 2, ("nobody", "NA"))
    assert column(tmp_path / "s", "samples", "sample_id") == [URLS[7], URLS[90]]


def test_command_says_what_it_kept_what_is_unknown_and_what_comes_next(tmp_path: Path, graph_dir: Path) -> None:
    keep = write_ids(tmp_path / "keep.txt", [URLS[7], "nobody"])
    answer = graphbuild("subset", "--graph-dir", graph_dir, "--keep", keep, "--out", tmp_path / "s")
    assert answer.returncode == 0, answer.stderr
    assert "1 samples and 1 texts of" in answer.stdout
    assert "1 of 2 ids are not in the graph, such as 'nobody'" in answer.stdout
    assert f"graphbuild knn --graph-dir {tmp_path / 's'}" in answer.stdout


def test_origin_and_kept_rows_are_recorded(tmp_path: Path, graph_dir: Path) -> None:
    subset(graph_dir, tmp_path / "s", [URLS[3]])
    dataset = Manifest.load(tmp_path / "s").dataset
    assert dataset["origin"]["graph_dir"] == str(graph_dir.absolute())
    assert dataset["origin"]["counts"]["samples"] == len(CAPTIONS)
    assert dataset["keep"]["rows"] == 1


def test_second_run_does_nothing_and_other_ids_are_refused(tmp_path: Path, graph_dir: Path) -> None:
    subset(graph_dir, tmp_path / "s", URLS[:30])
    before = file_times(tmp_path / "s")
    assert subset(graph_dir, tmp_path / "s", [*URLS[:30], "nobody"]).already_done
    assert file_times(tmp_path / "s") == before
    with pytest.raises(Exception, match=r"built from other input \(rows: .*--overwrite"):
        subset(graph_dir, tmp_path / "s", URLS[:10])
    subset(graph_dir, tmp_path / "s", URLS[:10], overwrite=True)
    subset(graph_dir, tmp_path / "fresh", URLS[:10])
    assert shard_digests(tmp_path / "s") == shard_digests(tmp_path / "fresh")


def test_missing_shard_is_rebuilt_to_the_same_bytes(tmp_path: Path, graph_dir: Path) -> None:
    subset(graph_dir, tmp_path / "s", URLS[::2])
    before = shard_digests(tmp_path / "s")
    for name in ("texts/part-00001.parquet", "embeddings/part-00000.parquet", "samples/part-00002.parquet"):
        (tmp_path / "s" / name).unlink()
    assert not subset(graph_dir, tmp_path / "s", URLS[::2]).already_done
    assert shard_digests(tmp_path / "s") == before


def test_what_cannot_be_is_one_line(tmp_path: Path, graph_dir: Path) -> None:
    with pytest.raises(SourceError, match="none of its 2 ids is in"):
        subset(graph_dir, tmp_path / "s", ["x", "y"])
    with pytest.raises(OptionError, match="is the graph itself"):
        subset(graph_dir, graph_dir, URLS)
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "keep.parquet")
    with pytest.raises(SourceError, match=r"which column holds the sample ids.*a, b"):
        subset_graph(graph_dir, tmp_path / "s", SubsetConfig(keep=tmp_path / "keep.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(SourceError, match=r"broken\.parquet: sample ids cannot be read"):
        subset_graph(graph_dir, tmp_path / "s", SubsetConfig(keep=tmp_path / "broken.parquet"))
    assert not (tmp_path / "s").exists()
