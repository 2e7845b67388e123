"""How much to draft, and whether to draft at all; never from the symbols just drawn."""

from multispec.policies.confidence import Confidence
from multispec.policies.fixed import FixedLength
from multispec.policies.heuristic import Heuristic
from multispec.policies.off import Off

__all__ = ["Confidence", "FixedLength", "Heuristic", "Off"]
