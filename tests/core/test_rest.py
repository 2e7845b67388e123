"""REST and its datastores: the order, the trie, and files that are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multispec.drafters.datastore import Datastore, build_datastore, fingerprint
from multispec.drafters.rest import Rest
from multispec.errors import IncompatibleModelsError, ModelLoadError, OutputError, UsageError
from multispec.history import History
from tests.core.drafting import VOCABULARY, ask, begin, paths, same_as_plain

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=4)


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Path]:
    def build(texts: Sequence[Sequence[int]], vocab_size: int = VOCABULARY, **changes: Any) -> Path:
        return build_datastore(texts, tmp_path / "corpus.datastore", vocab_size=vocab_size, **changes)

    return build


def continuations(
    texts: Sequence[Sequence[int]], suffix: Sequence[int], length: int
) -> list[tuple[int, ...]]:
    n = len(suffix)
    return [
        tuple(text[at + n : at + n + length])
        for text in texts
        for at in range(len(text) - n + 1)
        if list(text[at : at + n]) == list(suffix)
    ]


@pytest.mark.usefixtures("unchecked")
@given(TEXTS, st.lists(st.integers(0, 2), min_size=1, max_size=6), st.sampled_from([3, 70_000]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_longest_match_and_all_its_continuations(
    store: Callable[..., Path], texts: list[list[int]], ids: list[int], vocab_size: int
) -> None:
    """As a scan of the texts finds them, with symbols of two and of four bytes."""
    opened = Datastore(store(texts, vocab_size))
    n, first, last = opened.longest_suffix(ids, 1)
    lengths = [n for n in range(1, len(ids) + 1) if continuations(texts, ids[-n:], 1)]
    assert n == max(lengths, default=0)
    if n:
        found = opened.behind(n, first, last, 4, most=99).tolist()
        assert found == sorted(found)
        cut = [tuple(row[: row.index(vocab_size)] if vocab_size in row else row) for row in found]
        assert Counter(cut) == Counter(continuations(texts, ids[-n:], 4))


@pytest.mark.usefixtures("unchecked")
@given(TEXTS, st.lists(st.integers(0, 2), min_size=2, max_size=5), st.integers(1, 9))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_tree_holds_the_most_frequent_prefixes(
    store: Callable[..., Path], texts: list[list[int]], ids: list[int], nodes: int
) -> None:
    drafter = Rest(store(texts), length=4)
    tree = paths(ask(begin(drafter, ids), ids, nodes))
    n = max((n for n in range(2, len(ids) + 1) if continuations(texts, ids[-n:], 1)), default=0)
    behind = continuations(texts, ids[-n:], 4) if n else []
    counts = Counter(row[:d] for row in behind for d in range(1, len(row) + 1))
    assert tree <= {*counts}
    assert sorted(counts[path] for path in tree) == sorted(counts.values())[-nodes:][: len(tree)]
    assert len(tree) == min(len(counts), nodes)


def test_chains_follow_what_most_rows_share(store: Callable[..., Path]) -> None:
    texts = [[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 5, 7], [1, 2, 5, 7]]
    assert ask(begin(Rest(store(texts), tree=False), [1, 2]), [1, 2], nodes=9).ids == [5, 7]
    tree = paths(ask(begin(Rest(store(texts)), [1, 2]), [0, 1, 2], nodes=3))
    assert tree == {(5,), (5, 7), (3,)}


def test_of_many_matches_evenly_spaced_ones_are_read(store: Callable[..., Path]) -> None:
    """Shares stay what they are: a tenth of a hundred matches, by tens."""
    texts = [[1, 2, 3]] * 60 + [[1, 2, 4]] * 40
    opened = Datastore(store(texts))
    n, first, last = opened.longest_suffix([1, 2], 1)
    assert (n, last - first) == (2, 100)
    assert Counter(opened.behind(n, first, last, 1, most=10)[:, 0].tolist()) == {3: 6, 4: 4}


def test_ids_that_the_corpus_cannot_hold_match_nothing(store: Callable[..., Path]) -> None:
    session = begin(Rest(store([[1, 2, 3, 4]])), [1, 2])
    assert ask(session, [50, 1, 2]).ids == [3, 4]
    assert ask(session, [1, 50]).ids == ask(session, [7, 7]).ids == ask(session, [2]).ids == []
    assert ask(session, History([1, 2], foreign_prompt=True)).ids == []


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("tree", [True, False])
def test_seeds_decide(store: Callable[..., Path], tree: bool) -> None:
    texts = np.random.default_rng(0).integers(0, 3, (20, 30)).tolist()
    assert same_as_plain(Rest(store(texts, 3), tree=tree)) > 2


# ---- files ----


def test_the_fingerprint_tells_tokenizers_apart(store: Callable[..., Path]) -> None:
    mine, other = fingerprint({"a": 0, "b": 1}), fingerprint({"a": 1, "b": 0})
    assert mine == fingerprint({"b": 1, "a": 0}) != other
    path = store([[1, 2, 3]], tokenizer=mine)
    assert Datastore(path).tokenizer == mine
    assert Rest(Datastore(path), tokenizer=mine).name == Rest(path).name
    with pytest.raises(IncompatibleModelsError, match="another tokenizer"):
        Rest(path, tokenizer=other)
    with pytest.raises(IncompatibleModelsError, match="is for 40 symbols, and the target has 12"):
        begin(Rest(store([[1]], 40)), [1])


def test_files_that_are_no_datastores(store: Callable[..., Path], tmp_path: Path) -> None:
    whole = store([[1, 2, 3]]).read_bytes()
    header = whole[: whole.index(b"\0", 12)]
    broken = {
        "is no datastore": b"GGUF" + whole[4:],
        "begins b''": b"",
        "truncated or was added to": whole[:-1],
        "truncated or was added": whole + b"\0",
        "its header cannot be read": whole[:30],
        "header cannot be read": header[:-9] + whole[len(header) :],
        "of version 9": whole.replace(b'"version": 1', b'"version": 9'),
        "is empty": whole.replace(b'"symbols": 4', b'"symbols": 0'),
    }
    for rule, content in broken.items():
        path = tmp_path / "broken"
        path.write_bytes(content)
        with pytest.raises(ModelLoadError, match=rule):
            Rest(path)
    with pytest.raises(ModelLoadError, match="cannot be read"):
        Rest(tmp_path / "missing")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("texts", "vocab_size", "rule"),
    [
        ([], 12, "got none"),
        ([[]], 12, "leave out empty ones"),
        ([[1], ["a"]], 12, "as text 1"),
        ([[1, 12]], 12, r"lie in \[0, 12\): got 1 to 12"),
        ([[-1]], 12, "got -1"),
        ([[1]], 0, "vocab_size >= 1"),
    ],
)
def test_texts_that_cannot_be_stored(tmp_path: Path, texts: Any, vocab_size: int, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        build_datastore(texts, tmp_path / "corpus", vocab_size=vocab_size)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        build_datastore([[1]], tmp_path / "missing" / "corpus", vocab_size=2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"max_match": 17}, "max_match <= 16"),
        ({"min_match": 9, "max_match": 8}, "min_match <= max_match"),
        ({"length": 17}, "length <= 16"),
        ({"most": 0}, "most >= 1"),
        ({"num_draft_tokens": 0}, "num_draft_tokens >= 1"),
    ],
)
def test_settings_that_cannot_be_right(
    store: Callable[..., Path], changes: dict[str, Any], rule: str
) -> None:
    with pytest.raises(UsageError, match=rule):
        Rest(store([[1]]), **changes)
