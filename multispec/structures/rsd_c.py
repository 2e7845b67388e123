"""RSD with constant branching: siblings drawn without replacement in a full tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from multispec.stream import Draft
from multispec.structures.growing import Ground
from multispec.structures.shapes import expansion
from multispec.structures.static_tree import StaticTree


@dataclass(frozen=True)
class RsdConstant:
    """Every node of depth d has ``widths[d]`` children, drawn without replacement.

    RSD-C of Jeon et al. (2024), "Recursive Speculative Decoding: Accelerating LLM Inference via Sampling
    Without Replacement", section 3.1: the Gumbel-top-k of log q behind each node, which is k draws one after
    the other. Exact under recursive rejection (``rejection``, ``traversal``); under ``coupled`` the Gumbel
    noise is the target's own.

    Raises:
        UsageError: a width below 1.

    >>> RsdConstant((2, 2)).widths
    (2, 2)
    """

    name: ClassVar[str] = "rsd_c"
    paper: ClassVar[str] = "Jeon et al. 2024, arXiv 2402.14160"
    widths: Sequence[int] = (3, 2, 1, 1)

    def __post_init__(self) -> None:
        expansion(self.widths)

    def grow(self, ground: Ground) -> Draft:
        """The full tree, level by level."""
        return StaticTree(expansion(self.widths), "without_replacement").grow(ground)
