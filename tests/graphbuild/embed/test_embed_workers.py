"""Choosing the number of worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Barrier

import numpy as np
import torch

from graphbuild.embed.encoder_files import find_encoder
from graphbuild.embed.workers import choose_workers, fastest, measure


class Together:
    """An encoder whose calls, after the first, end only when four are under way at once."""

    dim, max_tokens = 2, 8

    def __init__(self) -> None:
        self.threads: list[int] = []
        self._meeting = Barrier(4)
        self._warm = False

    def tokenize(self, texts: Sequence[str]) -> tuple[list[np.ndarray], list[bool]]:
        return [np.zeros(1, np.int32) for _ in texts], [False for _ in texts]

    def encode(self, tokens: Sequence[np.ndarray], report: Callable[[int], None] = lambda _: None) -> np.ndarray:
        if self._warm:
            self._meeting.wait(timeout=30)
            self.threads.append(torch.get_num_threads())
        self._warm = True
        return np.zeros((len(tokens), 2), np.float32)

    def save_tokenizer(self, folder: Path) -> None: ...


def test_workers_are_measured_side_by_side_with_their_share_of_the_threads() -> None:
    before = torch.get_num_threads()
    encoder = Together()
    rates = measure(encoder, ["a", "b"], [4], cores=8)
    assert (list(rates), rates[4] > 0) == ([4], True)
    assert encoder.threads == [2] * 4
    assert torch.get_num_threads() == before


def test_start_of_workers_counts_so_that_few_texts_stay_in_this_process() -> None:
    rates = {1: 1_000.0, 2: 1_500.0, 4: 1_500.0}
    assert fastest(rates, 10_000) == 0
    assert fastest(rates, 1_000_000) == 2
    assert fastest({1: 1_000.0, 2: 900.0}, 1_000_000) == 0


def test_nothing_is_measured_where_there_is_nothing_to_choose() -> None:
    assert choose_workers(find_encoder("hashing:16"), ["a"], left=10**6, tasks=9).count == 0
    assert choose_workers(find_encoder("all-MiniLM-L6-v2"), ["a"], left=10**6, tasks=1).rates == {}
    assert choose_workers(find_encoder("all-MiniLM-L6-v2"), ["a"], left=1_000, tasks=9).rates == {}
