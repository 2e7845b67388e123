"""Draft more after a full success, less after a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from multispec.protocols import Budget, Past


@dataclass(frozen=True, kw_only=True)
class Heuristic:
    """Two more symbols after a round in which all were accepted, one fewer otherwise.

    The "heuristic" schedule of transformers' assisted generation (Gante 2023), between ``low`` and
    ``high``.
    """

    name: ClassVar[str] = "heuristic"
    paper: ClassVar[str] = "Gante 2023, transformers assisted generation"
    low: int = 1
    high: int = 32

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """From the outcome of the last round."""
        if not past.rounds or not past.last_nodes:
            return Budget(nodes=default_nodes)
        success = past.last_drafted > 0 and past.last_accepted == past.last_drafted
        nodes = past.last_nodes + 2 if success else past.last_nodes - 1
        return Budget(nodes=min(max(nodes, self.low), self.high))
