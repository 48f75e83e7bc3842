"""What the neighbour benchmark counts, without its timings."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
from helpers_graph import clustered_vectors

from benchmarks import knn, knn_peers


def test_rounds_in_which_the_reference_moves_by_over_a_fifth_are_void() -> None:
    assert knn._sound([1.0, 1.19, 0.81, 1.3, 0.7]) == [True, True, True, False, False]


def test_at_least_one_round_is_sound_whatever_the_reference_did() -> None:
    assert sum(knn._sound([1.0, 9.0])) == 1


def test_peer_that_is_not_installed_is_said_to_be_missing_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without_peers(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] in {"hnswlib", "pynndescent", "usearch"}:
            raise ImportError(name)
        return importing(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_peers)
    _, absent = knn_peers.approximate_peers(clustered_vectors(400, 8).astype(np.float32), 5, lambda _: 1.0)
    assert [line.split(":")[0] for line in absent] == ["pynndescent", "hnswlib", "usearch"]
    assert all("pip install 'xclr-graph[bench]'" in line for line in absent)


def test_effort_of_an_approximate_peer_rises_until_the_recall_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    efforts = [(f"effort {n}", lambda n=n: (1.0, np.array([[n]]))) for n in (1, 2, 3, 4)]
    assert knn_peers._tuned("peer", efforts, lambda ids: 0.985 + 0.002 * ids[0, 0]).name == "peer effort 3"
