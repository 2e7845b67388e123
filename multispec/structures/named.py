"""Structures by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from multispec.errors import UnknownNameError
from multispec.structures.adaptive import DDTree, DySpecTree, Eagle2Tree, OptTree
from multispec.structures.beams import Beams
from multispec.structures.growing import Structure
from multispec.structures.rsd_c import RsdConstant
from multispec.structures.rsd_s import RsdStochastic
from multispec.structures.sequoia import sequoia
from multispec.structures.shapes import eagle, expansion, medusa
from multispec.structures.static_tree import StaticTree
from multispec.structures.token_graph import TokenGraph

# Chances that the child of each rank is the one that is accepted: a middling draft model.
_CHANCES = (0.6, 0.15, 0.08, 0.04)

STRUCTURES: Mapping[str, Callable[[], Structure]] = {
    "medusa": lambda: StaticTree(medusa()),
    "eagle": lambda: StaticTree(eagle()),
    "specinfer": lambda: StaticTree(expansion((1, 1, 3, 1, 1, 1, 1, 1)), "independent"),
    "sequoia": lambda: StaticTree(sequoia(_CHANCES, 32, 8), "without_replacement"),
    "eagle2": Eagle2Tree,
    "opt_tree": OptTree,
    "dyspec": DySpecTree,
    "ddtree": DDTree,
    "rsd_c": RsdConstant,
    "rsd_s": RsdStochastic,
    "beams": Beams,
    "token_graph": TokenGraph,
}


def structure_of(given: str | Structure) -> Structure:
    """The structure of that name, as its paper sets it; a structure is returned as it is.

    Raises:
        UnknownNameError: no such structure.

    >>> structure_of("rsd_s").name
    'rsd_s'
    """
    if not isinstance(given, str):
        if not isinstance(given, Structure) or isinstance(given, type):
            raise UnknownNameError("structure", type(given).__name__, STRUCTURES)
        return given
    if given not in STRUCTURES:
        raise UnknownNameError("structure", given, STRUCTURES)
    return STRUCTURES[given]()
