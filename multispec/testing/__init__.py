"""Exact fakes, for our tests and for users who write a drafter, a verifier or a policy.

Models whose law is a table, and which raise ``AssertionError`` where the loop breaks the target protocol;
drafters that make every kind of draft; noise that explores every draw, so that the law of whole
generations through the real loop is computed instead of sampled.

>>> model = TableModel(seed=1)
>>> plain, drafted = (play(model, row(drafter=d))[0] for d in (None, TreeDrafter(model)))
>>> plain.tokens.tolist() == drafted.tokens.tolist()
True
"""

from multispec.testing.codec import TinyCodec
from multispec.testing.drafters import ScriptedDrafter, TreeDrafter
from multispec.testing.models import Call, FakeModel, FakeSession, ScriptedModel, SlotTableModel, TableModel
from multispec.testing.noise import EnumeratedNoise, enumerate_law
from multispec.testing.playing import play, row

__all__ = [
    "Call",
    "EnumeratedNoise",
    "FakeModel",
    "FakeSession",
    "ScriptedDrafter",
    "ScriptedModel",
    "SlotTableModel",
    "TableModel",
    "TinyCodec",
    "TreeDrafter",
    "enumerate_law",
    "play",
    "row",
]
