"""Rules of acceptance; each declares the promise it keeps."""

from multispec.verifiers.bild import BiLD
from multispec.verifiers.block import BlockVerification
from multispec.verifiers.blockwise import Blockwise
from multispec.verifiers.budget import BudgetedRejection
from multispec.verifiers.cascade import Cascade
from multispec.verifiers.contrastive import Contrastive
from multispec.verifiers.cool_sd import CoolSD
from multispec.verifiers.coupled import Coupled
from multispec.verifiers.gsd import GSD
from multispec.verifiers.k_seq import KSeq
from multispec.verifiers.lantern import Lantern, LanternPlusPlus
from multispec.verifiers.lenience import Lenience
from multispec.verifiers.mtad import MTAD
from multispec.verifiers.nucleus import Nucleus
from multispec.verifiers.optimal import Optimal
from multispec.verifiers.pcg import PCG
from multispec.verifiers.rejection import Rejection
from multispec.verifiers.sample_and_match import SampleAndMatch
from multispec.verifiers.spechub import SpecHub
from multispec.verifiers.ssd_beta import SSDBeta
from multispec.verifiers.tolerance import Tolerance
from multispec.verifiers.top_beta import TopBeta
from multispec.verifiers.top_k import TopK
from multispec.verifiers.traversal import Traversal
from multispec.verifiers.typical import Typical
from multispec.verifiers.zipar import ZipARVerifier

__all__ = [
    "GSD",
    "MTAD",
    "PCG",
    "BiLD",
    "BlockVerification",
    "Blockwise",
    "BudgetedRejection",
    "Cascade",
    "Contrastive",
    "CoolSD",
    "Coupled",
    "KSeq",
    "Lantern",
    "LanternPlusPlus",
    "Lenience",
    "Nucleus",
    "Optimal",
    "Rejection",
    "SSDBeta",
    "SampleAndMatch",
    "SpecHub",
    "Tolerance",
    "TopBeta",
    "TopK",
    "Traversal",
    "Typical",
    "ZipARVerifier",
]
