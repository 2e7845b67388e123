"""Ways of drafting; one file per method."""

from multispec.drafters.anpd import ANPD
from multispec.drafters.cacheback import Cacheback
from multispec.drafters.datastore import Datastore, build_datastore
from multispec.drafters.depth_ngram import DepthNgram
from multispec.drafters.draft_model import DraftModel
from multispec.drafters.jacobi import Jacobi
from multispec.drafters.llma import LLMA
from multispec.drafters.lookahead import Lookahead
from multispec.drafters.n_grammys import NGrammys
from multispec.drafters.ngram_model import NgramCounts, NgramModel
from multispec.drafters.previous_frame import PreviousFrame
from multispec.drafters.prompt_lookup import PromptLookup
from multispec.drafters.rest import Rest
from multispec.drafters.row_copy import RowCopy
from multispec.drafters.rowwise import EachRow, RowDrafter
from multispec.drafters.scd_mc import ScdMaximal
from multispec.drafters.sjd import SJD
from multispec.drafters.sjd_pac import SjdPac
from multispec.drafters.suffix_automaton import SuffixAutomatonDrafter
from multispec.drafters.suffix_decoding import SuffixDecoding
from multispec.drafters.token_recycling import TokenRecycling
from multispec.drafters.zipar import ZipAR

__all__ = [
    "ANPD",
    "LLMA",
    "SJD",
    "Cacheback",
    "Datastore",
    "DepthNgram",
    "DraftModel",
    "EachRow",
    "Jacobi",
    "Lookahead",
    "NGrammys",
    "NgramCounts",
    "NgramModel",
    "PreviousFrame",
    "PromptLookup",
    "Rest",
    "RowCopy",
    "RowDrafter",
    "ScdMaximal",
    "SjdPac",
    "SuffixAutomatonDrafter",
    "SuffixDecoding",
    "TokenRecycling",
    "ZipAR",
    "build_datastore",
]
