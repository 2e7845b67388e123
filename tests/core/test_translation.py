"""Draft models with another tokenizer: by text, and by the symbols that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from multispec.drafters import Reencoded, SharedVocabulary
from multispec.drafters.shared_vocabulary import intersection
from multispec.drafters.translation import Reader, text_of
from multispec.errors import IncompatibleModelsError, UnsupportedError, UsageError
from multispec.policies import Confidence
from multispec.protocols import Drafter
from multispec.sampling import Noise, Sampling
from multispec.stream import Slot, StreamSpec
from multispec.testing import SlotTableModel, TableModel, enumerate_law, play, row
from multispec.testing.laws import output_law, variation
from multispec.verifiers import Rejection
from tests.core.drafting import ask, begin
from tests.core.test_hierarchies import Once


def tokenizer(*words: str) -> Any:
    """A tokenizer of these words, the longest match first, by merges of letters."""
    letters = sorted({letter for word in words for letter in word})
    merges = [(word[:end], word[end]) for word in words for end in range(1, len(word))]
    known = {one: n for n, one in enumerate(dict.fromkeys([*letters, *(a + b for a, b in merges)]))}
    made = Tokenizer(models.BPE(vocab=known, merges=list(dict.fromkeys(merges))))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made)


# Ids 0 to 3 are letters for both, under other numbers; then come their own words.
OURS = tokenizer("a", "b", "c", "d", "ab")
THEIRS = tokenizer("a", "b", "c", "d", "cd", "ba")
SPEC = StreamSpec(slots=(Slot(size=5),))
TARGET = TableModel(5, seed=2, scale=1.5, spec=SPEC)
DRAFT = TableModel(6, seed=3, scale=1.5, strict=False)
BOTH: dict[str, Drafter] = {
    "reencoded": Reencoded(DRAFT, OURS, THEIRS, 4),
    "shared_vocabulary": SharedVocabulary(DRAFT, OURS, THEIRS, 4),
}


@pytest.mark.parametrize("name", BOTH)
def test_seeds_say_the_same(name: str) -> None:
    """Ragged rows: the symbols of plain decoding; by rejection nothing breaks."""
    asked = [
        row(ids, sampling=Sampling(seed=n), max_new_tokens=14) for n, ids in enumerate([(0, 1), (4, 2, 3)])
    ]
    found = play(TARGET, *(replace(one, drafter=BOTH[name]) for one in asked))
    assert [one.tokens.tolist() for one in found] == [one.tokens.tolist() for one in play(TARGET, *asked)]
    tested = play(TARGET, *(replace(one, drafter=BOTH[name], verifier=Rejection()) for one in asked))
    for one in (*found, *tested):
        assert not one.report.notes
        assert one.report.drafted > 0
    assert sum(one.report.accepted for one in found) > 0


@pytest.mark.parametrize("name", BOTH)
def test_rejection_keeps_the_law(name: str) -> None:
    """Every draw enumerated, two symbols behind the first: within 1e-9 of plain decoding."""
    table = TARGET.table.masked_fill(TARGET.table < TARGET.table.topk(2).values[:, -1:], -torch.inf)
    target = TableModel(5, table=table, spec=SPEC)
    drafted = [0, 0]

    def run(noise: Noise) -> tuple[int, ...]:
        settings: dict[str, Any] = {"policy": Once(2), "noise": noise, "stops": (three,)}
        found = play(target, row((0, 1), drafter=BOTH[name], verifier=Rejection(), **settings))[0]
        assert not found.report.notes
        drafted[0] += found.report.drafted
        drafted[1] += found.report.accepted
        return tuple(found.tokens.tolist())

    def three(ids: Sequence[int], scores: torch.Tensor) -> bool:
        return len(ids) >= 5

    assert variation(enumerate_law(run, horizon=3), output_law(target, prompt=(0, 1))) < 1e-9
    assert 0 < drafted[1] < drafted[0]


def test_q_is_the_law_over_the_common_symbols() -> None:
    """Renormalised, at the target's ids."""
    session = begin(BOTH["shared_vocabulary"], [0, 1], vocab_size=5)
    draft = ask(session, [0, 1, 2], 1, coupled=False, pipeline=pipeline())
    both = intersection(OURS.get_vocab(), THEIRS.get_vocab())
    assert len(both) == 4
    text = OURS.decode([0, 1, 2]).replace(" ", "")
    p = DRAFT.after(THEIRS(text)["input_ids"], 2).softmax(-1)
    expected = torch.zeros(5).double()
    for x, y in both.items():
        expected[x] = p[y]
    assert draft.q is not None
    assert torch.allclose(draft.q[0], expected / expected.sum())


def pipeline() -> Any:
    from multispec.processing import Pipeline

    return Pipeline(Sampling(), 5)


def test_words_of_the_target_become_one_symbol() -> None:
    """The draft says b behind a: the target writes what follows in its own ids."""
    ids = THEIRS.get_vocab()
    script = [ids["b"], ids["cd"], ids["a"], ids["b"]]
    table = torch.full((7, 6), -9.0).double()
    for before, after in zip([ids["a"], *script], script, strict=False):
        table[before, after] = 9.0
    drafter = Reencoded(TableModel(6, table=table, strict=False), OURS, THEIRS, 4)
    own = OURS.get_vocab()
    session = begin(drafter, [own["d"]], vocab_size=5)
    draft = ask(session, [own["d"], own["a"]], 9, pipeline=pipeline())
    # "a" stands already, so the first "b" is a symbol of its own.
    assert OURS.decode(draft.ids).replace(" ", "").startswith("bcd")


def test_the_reader_follows_what_was_taken_back() -> None:
    """Its ids are those of the whole text, whatever it read before."""
    reader = Reader(OURS, THEIRS)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 5, (60,), generator=generator).tolist()
    for length in [*range(1, 60, 3), 50, 60]:
        found = reader.read(ids[:length])
        assert text_of(THEIRS, found).replace(" ", "") == text_of(OURS, ids[:length]).replace(" ", "")
    assert Reader(OURS, THEIRS).read([]) == [0]


def test_an_unsure_law_ends_the_draft() -> None:
    """And so do an end of the draft model, and rules that leave no common symbol."""
    sure = row(drafter=BOTH["shared_vocabulary"], policy=Confidence(threshold=1.0, max_draft_tokens=4))
    assert play(TARGET, sure)[0].report.histogram is not None
    session = begin(BOTH["shared_vocabulary"], [0], vocab_size=5)
    word = OURS.get_vocab()["ab"]
    from multispec.processing import Pipeline

    only = Pipeline(Sampling(allowed_ids=[word]), 5)
    assert len(ask(session, [0, 1], 4, pipeline=only)) == 0
    table = torch.zeros(7, 6).double()
    table[:, 5] = 9.0
    ends = TableModel(6, table=table, end_ids=(5,), strict=False)
    assert len(ask(begin(Reencoded(ends, OURS, THEIRS), [0], vocab_size=5), [0, 1], 4)) == 0


def test_streams_of_codes_are_refused() -> None:
    """With the reason, and so is what is no tokenizer."""
    for drafter in BOTH.values():
        with pytest.raises(UnsupportedError, match="holds codes of a picture or a sound"):
            play(SlotTableModel(2, 3), row([1, 2], drafter=drafter))
        picture = replace(SPEC, row_length=3)
        with pytest.raises(UnsupportedError, match="goes from ids to text and back"):
            begin(drafter, [1], vocab_size=5, spec=picture)
    with pytest.raises(UsageError, match="draft_tokenizer is str, which is no tokenizer"):
        Reencoded(DRAFT, OURS, "gpt2")
    with pytest.raises(UsageError, match="num_draft_tokens >= 1"):
        SharedVocabulary(DRAFT, OURS, THEIRS, 0)
    with pytest.raises(IncompatibleModelsError, match="have none in common"):
        SharedVocabulary(DRAFT, OURS, tokenizer("x", "y"))
