"""What flows through the core keeps its contract: specs, drafts, results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from multispec.errors import DraftError, UnsupportedError
from multispec.report import Report
from multispec.stream import Draft, Generation, Slot, Step, StreamSpec, Verdict
from multispec.testing import TinyCodec


def test_flat_positions_are_slots_of_frames() -> None:
    spec = StreamSpec(slots=(Slot(size=8),) * 4)
    assert [spec.coordinates(position) for position in (0, 3, 4, 11)] == [
        (0, 0),
        (0, 3),
        (1, 0),
        (2, 3),
    ]


def test_the_vocabulary_is_that_of_the_widest_slot() -> None:
    """Ids of a slot start at its offset."""
    assert StreamSpec(slots=(Slot(size=8), Slot(size=4, offset=8))).vocab_size == 12
    assert StreamSpec(slots=(Slot(size=8, offset=1), Slot(size=4))).vocab_size == 9


def test_a_chain_without_q_is_a_point_mass() -> None:
    draft = Draft.chain([5, 7, 9])
    assert (draft.kind, draft.parents, draft.is_chain, len(draft)) == ("point", (-1, 0, 1), True, 3)
    assert Draft.chain([5], torch.eye(12)[:1]).kind == "sampled"


def test_the_empty_draft_is_a_plain_step() -> None:
    draft = Draft.empty()
    assert (len(draft), draft.is_chain) == (0, True)
    assert draft.check(12) is draft


def test_a_tree_is_no_chain() -> None:
    assert not Draft(tokens=torch.tensor([1, 2]), parents=(-1, -1)).is_chain


GOOD_Q = torch.full((2, 4), 0.25)
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "too few parents": ({"parents": (-1,)}, "one parent per token"),
    "tokens of two dimensions": ({"tokens": torch.tensor([[1, 2]])}, "one parent per token"),
    "a parent behind its child": ({"parents": (1, -1)}, "parents come before their children"),
    "its own parent": ({"parents": (0, 0)}, "parents come before their children"),
    "a parent below the root": ({"parents": (-2, 0)}, "parents come before their children"),
    "an id past the vocabulary": ({"tokens": torch.tensor([1, 4])}, r"lie in \[0, 4\)"),
    "a negative id": ({"tokens": torch.tensor([-1, 2])}, r"lie in \[0, 4\)"),
    "no q": ({"kind": "sampled"}, "needs q"),
    "too few rows of q": ({"kind": "sampled", "q": GOOD_Q[:1]}, "needs q"),
    "a q that is no law": ({"kind": "sampled", "q": GOOD_Q * 2}, "must sum to 1"),
    "a q that is not a number": (
        {"kind": "without_replacement", "q": GOOD_Q * torch.nan},
        "must sum to 1",
    ),
    "a q over other symbols": ({"kind": "sampled", "q": torch.full((2, 5), 0.2)}, "q"),
    "a q that goes below zero": (
        {"kind": "sampled", "q": torch.tensor([[1.5, -0.5, 0, 0]] * 2)},
        "q",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_drafts_are_refused(name: str) -> None:
    """Every way of breaking the contract has its own message."""
    changes, message = BROKEN[name]
    good: dict[str, Any] = {"tokens": torch.tensor([1, 2]), "parents": (-1, 0)}
    Draft(**good).check(4)
    with pytest.raises(DraftError, match=message):
        draft_of(good | changes).check(4)


def draft_of(fields: dict[str, Any]) -> Draft:
    """A draft whose shapes are not looked at, as in a program that does not check them."""
    draft = object.__new__(Draft)
    for name, value in ({"q": None, "kind": "point"} | fields).items():
        object.__setattr__(draft, name, value)
    return draft


def test_dataclasses_are_frozen() -> None:
    for one in (Draft.empty(), Verdict(path=(), tokens=(1,)), Step(token=1, from_draft=False)):
        with pytest.raises(AttributeError):  # frozen, or a property
            one.tokens = ()  # type: ignore[misc]


def generation(output: Any) -> Generation:
    return Generation(tokens=torch.tensor([1]), output=output, report=Report())


def test_text_is_saved_as_utf8(tmp_path: Path) -> None:
    path = generation("größer ✓").save(tmp_path / "out.txt")
    assert path.read_text(encoding="utf-8") == "größer ✓"


def test_media_save_themselves(tmp_path: Path) -> None:
    class Picture:
        def save(self, path: Path) -> None:
            path.write_bytes(b"pixels")

    assert generation(Picture()).save(str(tmp_path / "out.png")).read_bytes() == b"pixels"


def test_bare_ids_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="Only text and media can be saved: got NoneType"):
        generation(None).save(tmp_path / "out")


@pytest.mark.parametrize("seed", range(3))
def test_the_tiny_codec_gives_back_what_it_encoded(seed: int) -> None:
    codec = TinyCodec(cardinality=3, num_codebooks=3, grid=(2, 4))
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(27, codec.grid, generator=generator)
    codes = codec.encode(pixels)
    assert codes.shape == (8, 3)
    assert 0 <= int(codes.min()) <= int(codes.max()) < codec.cardinality
    assert torch.equal(codec.decode(codes), pixels)
