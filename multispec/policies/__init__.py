"""How much to draft, and whether to draft at all; never from the symbols just drawn."""

from multispec.policies.acceptance_aware import AcceptanceAware
from multispec.policies.ada_edl import AdaEDL
from multispec.policies.auto import Auto, Candidate
from multispec.policies.confidence import Confidence
from multispec.policies.costs import CostTable, measure_costs
from multispec.policies.draft_and_verify import DraftAndVerify
from multispec.policies.dynamic_depth import DynamicDepth
from multispec.policies.exp3 import EXP3
from multispec.policies.fixed import FixedLength
from multispec.policies.goodput import Goodput
from multispec.policies.heuristic import Heuristic
from multispec.policies.off import Off
from multispec.policies.path_confidence import PathConfidence
from multispec.policies.svip import SVIP
from multispec.policies.tapout import TapOut
from multispec.policies.ucb import UCB

__all__ = [
    "EXP3",
    "SVIP",
    "UCB",
    "AcceptanceAware",
    "AdaEDL",
    "Auto",
    "Candidate",
    "Confidence",
    "CostTable",
    "DraftAndVerify",
    "DynamicDepth",
    "FixedLength",
    "Goodput",
    "Heuristic",
    "Off",
    "PathConfidence",
    "TapOut",
    "measure_costs",
]
