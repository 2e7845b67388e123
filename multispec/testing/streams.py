"""One small model for every kind of stream, so that a method can be tried on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from multispec.neighbours import Neighbours
from multispec.stream import Allowed, Slot, StreamSpec
from multispec.testing.models import FakeModel, SlotTableModel, TableModel


@dataclass(frozen=True)
class Turns:
    """The grammar of flattened codebooks: each slot has ids of its own, and they take turns."""

    slots: tuple[Slot, ...]

    def __call__(self, generated: Sequence[int]) -> Allowed:
        """The codes of the slot whose turn it is."""
        slot = self.slots[len(generated) % len(self.slots)]
        return Allowed(range(slot.offset, slot.offset + slot.size))


def fake_streams(seed: int = 0, *, support: int | None = None) -> dict[str, FakeModel]:
    """A table model per kind of stream, whose laws come from ``seed`` and have ``support`` symbols.

    ============== ==================================================== =====================
    ``text``        symbols one after the other                          8 symbols
    ``image``       rows of four codes                                   8 codes
    ``frames``      speech, two codebooks that take turns                4 codes each
    ``two levels``  the same by a model that scores chains only          4 codes each
    ``parallel``    speech, two codebooks at once                        3 codes each
    ============== ==================================================== =====================

    >>> [model.spec.step for model in fake_streams().values()]
    [1, 1, 1, 1, 2]
    """
    slots = (Slot(size=4), Slot(size=4, offset=4))
    frames = StreamSpec(slots=slots, grammar=Turns(slots))
    picture = StreamSpec(slots=(Slot(size=8),), order="raster", row_length=4)
    return {
        "text": TableModel(8, seed=seed, support=support),
        "image": TableModel(8, seed=seed + 1, support=support, spec=picture),
        "frames": TableModel(8, seed=seed + 2, spec=frames),
        "two levels": TableModel(8, seed=seed + 2, spec=replace(frames), supports_tree=False),
        "parallel": SlotTableModel(2, 3, seed=seed + 3),
    }


def kind_of(stream: str) -> str:
    """The stream that a fake one stands for: "text", "image" or "speech".

    >>> kind_of("two levels")
    'speech'
    """
    return stream if stream in ("text", "image") else "speech"


def fake_neighbours(model: FakeModel, seed: int = 0) -> Neighbours:
    """Random places in a plane for the symbols of the first slot, for rules that look at neighbours."""
    slot, generator = model.spec.slots[0], torch.Generator().manual_seed(seed)
    return Neighbours(codebook=torch.randn(slot.size, 2, generator=generator), offset=slot.offset)
