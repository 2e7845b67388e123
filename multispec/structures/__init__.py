"""The shapes of drafts: static trees, trees grown from probabilities, and trees packed from sequences."""

from multispec.structures.adaptive import DDTree, DySpecTree, Eagle2Tree, OptTree
from multispec.structures.beams import Beams
from multispec.structures.dynamic import Expand, Grown, ddtree, dyspec, eagle2, opt_tree
from multispec.structures.growing import Ground, Growth, Structure
from multispec.structures.named import STRUCTURES, structure_of
from multispec.structures.prefix_tree import PrefixTree, pack
from multispec.structures.rsd_c import RsdConstant
from multispec.structures.rsd_s import RsdStochastic
from multispec.structures.sequoia import expected_symbols, sequoia, sequoia_sized
from multispec.structures.shapes import calibrated, eagle, expansion, expected_length, from_ranks, medusa
from multispec.structures.static_tree import StaticTree
from multispec.structures.token_graph import TokenGraph

__all__ = [
    "STRUCTURES",
    "Beams",
    "DDTree",
    "DySpecTree",
    "Eagle2Tree",
    "Expand",
    "Ground",
    "Grown",
    "Growth",
    "OptTree",
    "PrefixTree",
    "RsdConstant",
    "RsdStochastic",
    "StaticTree",
    "Structure",
    "TokenGraph",
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
    "structure_of",
]
