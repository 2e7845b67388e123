"""Exact fakes, for our tests and for users who write a drafter, a verifier or a policy.

Models whose law is a table, and which raise ``AssertionError`` where the loop breaks the target protocol;
drafters that make every kind of draft; noise that explores every draw, so that the law of whole
generations through the real loop is computed instead of sampled, for any drafter and verifier
(``output_law``), and the meter of any relaxed rule (``one_trial``).

>>> model = TableModel(seed=1)
>>> plain, drafted = (play(model, row(drafter=d))[0] for d in (None, TreeDrafter(model)))
>>> plain.tokens.tolist() == drafted.tokens.tolist()
True
"""

from multispec.testing.codec import TinyCodec
from multispec.testing.drafters import ScriptedDrafter, TreeDrafter
from multispec.testing.laws import Trial, one_trial, output_law, variation
from multispec.testing.models import Call, FakeModel, FakeSession, ScriptedModel, SlotTableModel, TableModel
from multispec.testing.noise import EnumeratedNoise, enumerate_law
from multispec.testing.playing import play, row
from multispec.testing.streams import fake_neighbours, fake_streams, kind_of

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
    "Trial",
    "enumerate_law",
    "fake_neighbours",
    "fake_streams",
    "kind_of",
    "one_trial",
    "output_law",
    "play",
    "row",
    "variation",
]
