"""What ``policy="auto"`` learned in one request, for the next one like it: nothing is tried over again.

Requests are alike where the same ways to draft were to choose from, under the same rule and temperature,
guided or not, with about as many rows at once. Only how fast things are depends on it, never what comes out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from multispec.policies import Auto
from multispec.row import Row, RowSettings


class Experience:
    """The last memory of "auto", by the circumstances of its request."""

    def __init__(self) -> None:
        self._known: dict[Hashable, object] = {}

    def recalled(self, settings: RowSettings, together: int) -> RowSettings:
        """The settings of a row, ``together`` of which run at once, with what is known of such requests."""
        policy = settings.policy
        found = self._known.get(_circumstances(settings, together))
        if not isinstance(policy, Auto) or found is None:
            return settings
        return replace(settings, policy=replace(policy, learned=found))

    def keep(self, rows: Sequence[Row], together: int) -> None:
        """Remember what the policies of these rows ended with; the longest of like rows counts."""
        for row in sorted(rows, key=lambda row: row.report.rounds):
            if isinstance(row.settings.policy, Auto) and row.past.memory is not None:
                self._known[_circumstances(row.settings, together)] = row.past.memory


def _circumstances(settings: RowSettings, together: int) -> Hashable:
    policy = settings.policy
    candidates = tuple(policy.candidates) if isinstance(policy, Auto) else ()
    heat = round(settings.sampling.temperature, 1)
    return candidates, settings.verifier.name, heat, settings.prompt.guided, together.bit_length()
