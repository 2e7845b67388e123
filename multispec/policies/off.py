"""No drafting: plain decoding through the same loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from multispec.protocols import Budget, Past


@dataclass(frozen=True, kw_only=True)
class Off:
    """0 draft symbols in every round."""

    name: ClassVar[str] = "off"
    paper: ClassVar[str] = ""

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """Nothing to draft."""
        return Budget(nodes=0)
