"""The key/value cache against plain Python lists: ragged rows, trees, rollback, rows that leave."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from multispec.cache import RaggedCache, allocate
from multispec.errors import OutOfMemoryError
from multispec.testing.models import Call
from multispec.tree import path_to

HEADS, WIDTH, CAPACITY = 2, 3, 64


def states(values: list[list[int]]) -> Tensor:
    """Keys ``[B, heads, Q, C]`` that spell out ids."""
    ids = torch.tensor(values, dtype=torch.float32)
    return ids[:, None, :, None].expand(-1, HEADS, -1, WIDTH).clone()


def write(cache: RaggedCache, values: list[list[int]]) -> None:
    cache.ledger.open(len(values[0]), torch.device("cpu"))
    for layer, sign in zip(cache.ragged, (1, -1), strict=True):
        layer.update(sign * states(values), sign * states(values) / 2)


def held(cache: RaggedCache, row: int) -> list[int]:
    """The ids that a row holds; every layer, head and channel has to agree."""
    length = cache.ledger.lengths[row]
    first = cache.ragged[0].keys[row, :, :length]
    assert torch.equal(first, cache.ragged[0].values[row, :, :length] * 2)
    assert torch.equal(first, -cache.ragged[1].keys[row, :, :length])
    assert torch.equal(first, first[:1, :, :1].expand_as(first))
    return [int(value) for value in first[0, :, 0]]


def cache_of(rows: int) -> RaggedCache:
    return RaggedCache(2, rows, CAPACITY)


def test_a_chain_that_is_accepted_in_part() -> None:
    cache = cache_of(1)
    write(cache, [[5, 6, 7, 8]])
    cache.commit(0, (0,))
    assert held(cache, 0) == [5, 6]
    write(cache, [[9, 10]])
    cache.commit(0, ())
    assert held(cache, 0) == [5, 6, 9]


def test_a_tree_path_is_gathered() -> None:
    """Nodes 1 and 3 of a tree become the neighbours of the root."""
    cache = cache_of(1)
    write(cache, [[1, 10, 11, 12, 13]])
    cache.commit(0, (1, 3))
    assert held(cache, 0) == [1, 11, 13]


def test_rewind_only_goes_back() -> None:
    cache = cache_of(1)
    write(cache, [[1, 2, 3]])
    cache.commit(0, (0, 1))
    cache.rewind(0, 9)
    assert held(cache, 0) == [1, 2, 3]
    cache.rewind(0, 1)
    assert held(cache, 0) == [1]


@pytest.mark.parametrize("seed", range(8))
def test_random_runs_equal_lists(seed: int) -> None:
    """Rows advance by different amounts, roll back, and leave in any order."""
    rng = random.Random(seed)
    count = rng.randint(1, 4)
    cache = cache_of(count)
    expected: list[list[int]] = [[] for _ in range(count)]
    for _ in range(6):
        round_of(rng, cache, expected)
        if rng.random() < 0.3:
            row = rng.randrange(len(expected))
            length = rng.randint(0, len(expected[row]))
            cache.rewind(row, length)
            expected[row] = expected[row][:length]
        if len(expected) > 1 and rng.random() < 0.3:
            kept = sorted(rng.sample(range(len(expected)), len(expected) - 1))
            cache.keep(kept)
            expected = [expected[row] for row in kept]
        assert [held(cache, row) for row in range(len(expected))] == expected


def round_of(rng: random.Random, cache: RaggedCache, expected: list[list[int]]) -> None:
    """Write a tree per row, padded to the widest, and commit one path of each."""
    sizes = [rng.randint(0, 4) for _ in expected]
    values = [[rng.randint(1, 99) for _ in range(1 + max(sizes))] for _ in expected]
    write(cache, values)
    for row, size in enumerate(sizes):
        parents = [rng.randint(-1, node - 1) for node in range(size)]
        path = path_to(parents, rng.randint(-1, size - 1))
        cache.commit(row, path)
        expected[row] += [values[row][0], *(values[row][node + 1] for node in path)]


def test_rows_of_a_pass_see_up_to_its_end() -> None:
    """``update`` gives back all that any row may look at, and nothing behind."""
    cache = cache_of(2)
    write(cache, [[1, 2, 3], [4, 5, 6]])
    cache.commit(0, (0, 1))
    cache.commit(1, ())
    cache.ledger.open(2, torch.device("cpu"))
    keys, values = cache.ragged[0].update(states([[7, 8], [9, 10]]), states([[7, 8], [9, 10]]))
    assert keys.shape == values.shape == (2, HEADS, 5, WIDTH)
    assert keys[0, 0, :, 0].tolist() == [1, 2, 3, 7, 8]
    assert keys[1, 0, :3, 0].tolist() == [4, 9, 10]
    assert cache.ragged[0].get_mask_sizes(2) == (5, 0)
    assert cache.ragged[0].get_seq_length() == 3
    assert cache.ragged[0].get_max_length() == CAPACITY


def test_nothing_grows_while_generating() -> None:
    cache = cache_of(1)
    write(cache, [[1, 2]])
    before = cache.ragged[0].keys.data_ptr()
    for token in range(20):
        cache.commit(0, ())
        write(cache, [[token, token]])
    assert cache.ragged[0].keys.data_ptr() == before


def test_rows_may_leave_before_anything_was_written() -> None:
    cache = cache_of(3)
    cache.keep([2])
    assert cache.ledger.lengths == [0]


def test_no_memory_names_what_and_how_much() -> None:
    with pytest.raises(OutOfMemoryError, match="for the big cache: .* MiB of shape .*Lower max_new"):
        allocate((2**20, 2**30), torch.zeros(1), "the big cache")


def test_recorded_calls_compare_by_value() -> None:
    """What fakes record can be compared in a test."""
    assert Call((0,), (1,), ()) == Call((0,), (1,), ())
