"""Soft targets in anybody's loop: ids in, the trainer's similarities out; in workers and threads; and what is refused."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from helpers_targets import laid_out, slow_entropy, slow_kl, slow_own_view_mass
from torch.utils.data import DataLoader, Dataset

import graphbuild
from graphbuild.errors import ArtifactError, ArtifactMismatch, OptionError, SourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.graph import Graph
from graphbuild.targets import assemble as reference
from graphbuild.targets.batches import draw_captions
from graphbuild.torch import SoftTargets

TEXTS = 90
IDS = [f"picture-{number}.jpg" for number in range(60)]
SAMPLES = [(name, number % 80) for number, name in enumerate(IDS)]
MANY = [(IDS[number // 3], number % TEXTS) for number in range(180)]
"""Three captions a picture; pictures 0 and 30 have the same three."""


def build(folder: Path, samples: Sequence[tuple[str, int]], **options: Any) -> Path:
    write_graph(folder, clustered_vectors(TEXTS, 16), samples=list(samples), shard_size=32)
    build_knn(folder, KnnConfig(**{"k": 12, "sketch_dim": 8, **options}))
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("single"), SAMPLES)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("several"), MANY)


def expected_of(graph_dir: Path, texts: Sequence[int]) -> np.ndarray:
    ids = np.asarray(texts)
    return reference.assemble(Graph.open(graph_dir).rows(ids), ids).similarity_BB


def test_ids_and_positions_give_the_reference_of_their_texts(single: Path) -> None:
    targets = SoftTargets(single)
    chosen = [5, 59, 0, 33]
    expected = expected_of(single, [SAMPLES[i][1] for i in chosen])
    positions = targets.positions(IDS)
    assert positions.dtype == torch.int64
    for batch in ([IDS[i] for i in chosen], np.array(IDS)[chosen], positions[chosen], positions[chosen].numpy()):
        np.testing.assert_array_equal(targets(batch).numpy(), expected)


def test_one_caption_of_a_sample_is_drawn_by_seed_and_epoch(several: Path) -> None:
    targets = SoftTargets(several, seed=4)
    rows = np.arange(0, 180, 3)
    np.testing.assert_array_equal(targets.positions(IDS).numpy(), rows)
    seen = set()
    for epoch in range(4):
        drawn = draw_captions(np.full(60, 3), rows, seed=4, epoch=epoch)
        texts = [MANY[row + draw][1] for row, draw in zip(rows, drawn, strict=True)]
        np.testing.assert_array_equal(targets(IDS, epoch=epoch).numpy(), expected_of(several, texts))
        targets.set_epoch(epoch)
        assert torch.equal(targets(IDS), targets(targets.positions(IDS), epoch=epoch))
        seen.add(tuple(texts))
    assert len(seen) == 4


@pytest.mark.parametrize("at_once", [8_192, 1])
def test_average_is_the_mean_over_the_captions_of_both(several: Path, at_once: int) -> None:
    chosen = [0, 7, 30, 7, 12]
    texts = [[MANY[3 * i + c][1] for c in range(3)] for i in chosen]
    pairs = expected_of(several, [text for some in texts for text in some])
    expected = pairs.reshape(5, 3, 5, 3).astype(np.float64).mean(axis=(1, 3))
    expected[np.array(chosen)[:, None] == np.array(chosen)] = 1.0
    names = [IDS[i] for i in chosen]
    targets = SoftTargets(several, captions="average")
    targets.assembler.captions_at_once = at_once
    np.testing.assert_allclose(targets(names).numpy(), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(graphbuild.open(several).similarity(names, captions="average"), expected, rtol=0, atol=1e-6)


def test_numpy_gives_what_torch_gives(single: Path, several: Path) -> None:
    for folder in (single, several):
        options: dict[str, Any] = {"absent": 0.05, "symmetrize": "mutual", "seed": 2}
        found = graphbuild.open(folder).similarity(IDS[:20], epoch=3, **options)
        np.testing.assert_array_equal(SoftTargets(folder, **options)(IDS[:20], epoch=3).numpy(), found)
    target = graphbuild.open(single).soft_targets(IDS[:20], tau_s=0.2, min_similarity=0.1, own_weight=0.3)
    shaped = SoftTargets(single, tau_s=0.2, min_similarity=0.1, own_weight=0.3)(IDS[:20]).numpy()
    np.testing.assert_allclose(target, laid_out(shaped, 0.2), rtol=0, atol=1e-5)


def test_description_equals_the_slow_figures(single: Path) -> None:
    targets = SoftTargets(single, tau_s=0.2)
    found, batch = targets.describe(IDS[:30]), targets(IDS[:30]).numpy()
    texts = np.array([text for _, text in SAMPLES[:30]])
    assembly = reference.assemble(Graph.open(single).rows(texts), texts)
    target, dense = laid_out(batch, 0.2), laid_out(reference.dense(Graph.open(single).embeddings()[texts], texts), 0.2)
    assert found == {
        "own_view_mass": pytest.approx(slow_own_view_mass(target), rel=1e-5),
        "target_entropy": pytest.approx(slow_entropy(target), rel=1e-5),
        "effective_positives": pytest.approx(math.exp(slow_entropy(target)), rel=1e-5),
        "hit_rate": pytest.approx(reference.hit_rate(assembly)),
        "kl_to_dense": pytest.approx(slow_kl(dense, target), abs=1e-6),
    }
    assert set(SoftTargets(single, teacher="embeddings").describe(IDS)) == {
        "own_view_mass",
        "target_entropy",
        "effective_positives",
    }


def test_description_of_averages_is_that_of_their_similarities(several: Path) -> None:
    targets = SoftTargets(several, captions="average")
    found = targets.describe(IDS[:10])
    assert found["own_view_mass"] == pytest.approx(slow_own_view_mass(laid_out(targets(IDS[:10]).numpy(), 0.1)), rel=1e-5)
    assert 0 <= found["kl_to_dense"] < 0.1


def test_one_sample_and_a_sample_twice_are_batches(single: Path) -> None:
    targets = SoftTargets(single)
    assert targets(IDS[:1]).tolist() == [[1.0]]
    twice = targets([IDS[3], IDS[8], IDS[3]])
    assert twice[0, 2] == 1.0
    assert torch.equal(twice[0], twice[2])
    assert targets([]).shape == (0, 0)


class Pictures(Dataset[int]):
    def __len__(self) -> int:
        return len(IDS)

    def __getitem__(self, index: int) -> int:
        return index


class Collate:
    """Makes the similarities of a batch in a worker; one that is told to dies."""

    def __init__(self, targets: SoftTargets, dies: bool = False) -> None:
        self.targets, self.dies = targets, dies

    def __call__(self, indices: list[int]) -> tuple[list[int], torch.Tensor]:
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return indices, self.targets([IDS[index] for index in indices])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_loader_give_the_same_similarities(single: Path, context: str) -> None:
    targets = SoftTargets(single)
    # Opened before the workers are forked: they open their own.
    whole = targets(IDS)
    assert len(pickle.dumps(targets)) < 2000
    loader = DataLoader(Pictures(), batch_size=30, num_workers=1, collate_fn=Collate(targets), multiprocessing_context=context)
    for indices, similarity in loader:
        assert torch.equal(similarity, whole[indices][:, indices])


def test_dead_worker_is_an_error_of_the_loader_and_the_targets_go_on(single: Path) -> None:
    targets = SoftTargets(single)
    loader = DataLoader(Pictures(), batch_size=30, num_workers=1, collate_fn=Collate(targets, dies=True))
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* (killed by signal|exited unexpectedly)"):
        next(iter(loader))
    assert targets(IDS[:2]).shape == (2, 2)


def test_threads_share_one_open_graph(single: Path) -> None:
    targets, whole, wrong = SoftTargets(single), SoftTargets(single)(IDS), []

    def work(seed: int) -> None:
        for round_ in range(20):
            some = np.random.default_rng(seed * 100 + round_).permutation(60)[:20]
            if not torch.equal(targets([IDS[i] for i in some]), whole[some][:, some]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_read_only_graph_is_read_and_left_as_it_was(single: Path, tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    shutil.copytree(single, folder)
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    SoftTargets(folder).describe(IDS[:10])
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_unknown_ids_are_named_and_counted(single: Path) -> None:
    targets = SoftTargets(single)
    with pytest.raises(SourceError, match=r"does not know 1 of the 3 sample ids: 'nobody'\. Its own are such as 'picture-0\.jpg'"):
        targets([IDS[0], "nobody", IDS[2]])
    with pytest.raises(SourceError, match=r"does not know 4 of the 4 sample ids: '0', '1', '2', \.\.\."):
        targets.positions(["0", "1", "2", "3"])
    with pytest.raises(SourceError, match="'nobody'"):
        graphbuild.open(single).similarity(["nobody"])


def test_message_shows_different_ids_of_samples_with_several_captions(several: Path) -> None:
    with pytest.raises(SourceError, match=r"such as 'picture-0\.jpg', 'picture-1\.jpg', 'picture-2\.jpg'"):
        SoftTargets(several)(["nobody"])


def test_coverage_counts_the_known_ids_and_marks_them(single: Path) -> None:
    found = SoftTargets(single).coverage([IDS[0], "nobody", IDS[2], "no one"])
    assert (found.known, found.total, found.share, found.mask.tolist()) == (2, 4, 0.5, [True, False, True, False])


@pytest.mark.parametrize("ids", [[3, 4], (IDS[0], 4), [None]])
def test_ids_that_are_no_strings_are_refused_with_ids_as_they_were_written(single: Path, ids: Any) -> None:
    with pytest.raises(SourceError, match=r"sample ids are strings, and .* is of type (int|NoneType).*such as 'picture-0\.jpg'"):
        SoftTargets(single)(ids)


@pytest.mark.parametrize("positions", [torch.tensor([0, 60]), torch.tensor([-1]), torch.tensor([[0, 1]])])
def test_positions_that_are_none_are_refused(single: Path, positions: torch.Tensor) -> None:
    with pytest.raises(OptionError, match=r"rows of the samples table run from 0 to 59|one row of integers"):
        SoftTargets(single)(positions)


def test_graph_without_neighbours_is_refused_with_the_command(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(20, 8))
    with pytest.raises(ArtifactError, match="graphbuild knn"):
        SoftTargets(tmp_path)


def test_graph_whose_embeddings_are_of_another_encoder_is_refused(single: Path, tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    shutil.copytree(single, folder)
    other = tmp_path / "other"
    write_graph(other, clustered_vectors(TEXTS, 16, seed=9), samples=SAMPLES, shard_size=32, encoder="another")
    shutil.copytree(other / "embeddings", folder / "embeddings", dirs_exist_ok=True)
    manifest = graphbuild.open(folder).manifest
    manifest.stages["embed"] = graphbuild.open(other).manifest.stages["embed"]
    manifest.save(folder)
    with pytest.raises(ArtifactMismatch, match=r"the neighbours were computed from another .*graphbuild knn --overwrite"):
        SoftTargets(folder, teacher="embeddings")(IDS)


def test_graph_that_moved_is_named(single: Path, tmp_path: Path) -> None:
    shutil.copytree(single, tmp_path / "graph")
    targets = SoftTargets(tmp_path / "graph")
    (tmp_path / "graph").rename(tmp_path / "moved")
    with pytest.raises(ArtifactError, match=r"graph: no graph here \(graph\.json is missing\)"):
        pickle.loads(pickle.dumps(targets))(IDS)
    with pytest.raises(ArtifactError, match="no graph here"):
        SoftTargets(tmp_path / "graph")


def test_open_graph_goes_on_where_its_directory_moved(single: Path, tmp_path: Path) -> None:
    shutil.copytree(single, tmp_path / "graph")
    targets = SoftTargets(tmp_path / "graph")
    whole = targets(IDS)
    (tmp_path / "graph").rename(tmp_path / "moved")
    assert torch.equal(targets(IDS), whole)


def test_damaged_shard_is_named_with_the_command(single: Path, tmp_path: Path) -> None:
    shutil.copytree(single, tmp_path / "graph")
    shard = tmp_path / "graph/knn/part-00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"knn/part-00001\.arrow .*graphbuild knn"):
        SoftTargets(tmp_path / "graph")(IDS)


@pytest.mark.parametrize(
    ("device", "message"), [("quantum", "device 'quantum' is no device"), ("cuda:99", "CUDA devices"), ("meta", "not supported")]
)
def test_device_that_does_not_exist_is_refused(single: Path, device: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SoftTargets(single, device=device)


def test_captions_are_drawn_or_averaged(single: Path) -> None:
    with pytest.raises(OptionError, match="captions 'first' is neither draw nor average"):
        SoftTargets(single, captions="first")  # type: ignore[arg-type]


def test_graph_without_sketch_needs_a_constant(tmp_path: Path) -> None:
    folder = build(tmp_path, SAMPLES, sketch_dim=0)
    with pytest.raises(OptionError, match=r"absent=0\.1"):
        SoftTargets(folder)(IDS)
    assert SoftTargets(folder, absent=-math.inf)(IDS).shape == (60, 60)
