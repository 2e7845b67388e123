"""The shapes of drafts: static trees, trees grown from probabilities, and trees packed from sequences."""

from multispec.structures.dynamic import Expand, Grown, ddtree, dyspec, eagle2, opt_tree
from multispec.structures.prefix_tree import PrefixTree, pack
from multispec.structures.sequoia import expected_symbols, sequoia, sequoia_sized
from multispec.structures.shapes import calibrated, eagle, expansion, expected_length, from_ranks, medusa

__all__ = [
    "Expand",
    "Grown",
    "PrefixTree",
    "calibrated",
    "ddtree",
    "dyspec",
    "eagle",
    "eagle2",
    "expansion",
    "expected_length",
    "expected_symbols",
    "from_ranks",
    "medusa",
    "opt_tree",
    "pack",
    "sequoia",
    "sequoia_sized",
]
