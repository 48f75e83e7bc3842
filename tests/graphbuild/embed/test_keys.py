"""Keys are numbered by first appearance, and never taken for one another because a part of them agrees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.embed.hashing import HashingEncoder
from graphbuild.embed.text import table as text
from graphbuild.embed.text.keys import KeyTable
from graphbuild.embed.text.table import Prompts, TextTable

# Few values, so that keys repeat and agree in one half.
halves = st.sampled_from([0, 1, 2, 1 << 32, (1 << 64) - 1])


@settings(deadline=None)
@given(st.lists(st.tuples(halves, halves)), st.integers(1, 5))
def test_numbers_are_those_of_a_dict_whatever_the_batches(keys: list[tuple[int, int]], size: int) -> None:
    table = KeyTable()
    found = [
        number
        for start in range(0, len(keys), size)
        for number in table.number(np.array(keys[start : start + size], np.uint64)).tolist()
    ]
    first: dict[tuple[int, int], int] = {}
    assert found == [first.setdefault(key, len(first)) for key in keys]
    assert len(table) == len(first)


def test_numbers_hold_while_the_table_grows() -> None:
    keys = np.random.default_rng(0).integers(0, 1 << 63, (50_000, 2)).astype(np.uint64)
    table = KeyTable()
    for start in range(0, len(keys), 777):
        table.number(keys[start : start + 777])
    assert np.array_equal(table.number(keys), np.arange(50_000))


def test_texts_whose_text_hash_collides_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    strong = text.hash_tokens
    monkeypatch.setattr(text, "hash_tokens", lambda prompts: (strong(prompts)[0] & 3, strong(prompts)[1]))
    names = [f"caption {i % 300}" for i in range(900)]
    table = TextTable(HashingEncoder(4), Prompts())
    assert table.add(names).tolist() == [i % 300 for i in range(900)]
    assert len({new.text_hash for new in table.take_new()}) == 4
    assert table.counts().tolist() == [3] * 300
