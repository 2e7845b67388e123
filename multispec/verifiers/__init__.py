"""Rules of acceptance; each declares the promise it keeps."""

from multispec.verifiers.budget import BudgetedRejection
from multispec.verifiers.cool_sd import CoolSD
from multispec.verifiers.coupled import Coupled
from multispec.verifiers.gsd import GSD
from multispec.verifiers.lantern import Lantern, LanternPlusPlus
from multispec.verifiers.rejection import Rejection
from multispec.verifiers.zipar import ZipARVerifier

__all__ = [
    "GSD",
    "BudgetedRejection",
    "CoolSD",
    "Coupled",
    "Lantern",
    "LanternPlusPlus",
    "Rejection",
    "ZipARVerifier",
]
