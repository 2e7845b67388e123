"""Ways of drafting; one file per method."""

from multispec.drafters.aded import ADED
from multispec.drafters.among import Among
from multispec.drafters.anpd import ANPD
from multispec.drafters.best_gain import BestGain
from multispec.drafters.cacheback import Cacheback
from multispec.drafters.cascade import Cascade
from multispec.drafters.cosine_skip import CosineSkip
from multispec.drafters.datastore import Datastore, build_datastore
from multispec.drafters.depth_ngram import DepthNgram
from multispec.drafters.draft_model import DraftModel
from multispec.drafters.early_exit import EarlyExit
from multispec.drafters.fallback import Fallback
from multispec.drafters.horizontal import HorizontalCascade
from multispec.drafters.jacobi import Jacobi
from multispec.drafters.layer_search import search_layers
from multispec.drafters.llma import LLMA
from multispec.drafters.lookahead import Lookahead
from multispec.drafters.max_gram import MaxGram
from multispec.drafters.merged import Merged
from multispec.drafters.n_grammys import NGrammys
from multispec.drafters.ngram_model import NgramCounts, NgramModel
from multispec.drafters.pld_plus import PLDPlus
from multispec.drafters.previous_frame import PreviousFrame
from multispec.drafters.prompt_lookup import PromptLookup
from multispec.drafters.quantised import Quantised
from multispec.drafters.reencoded import Reencoded
from multispec.drafters.rest import Rest
from multispec.drafters.row_copy import RowCopy
from multispec.drafters.rowwise import EachRow, RowDrafter
from multispec.drafters.scd_mc import ScdMaximal
from multispec.drafters.shared_vocabulary import SharedVocabulary
from multispec.drafters.sjd import SJD
from multispec.drafters.sjd_pac import SjdPac
from multispec.drafters.skip_layers import SkipLayers
from multispec.drafters.sparse_cache import SparseCache
from multispec.drafters.suffix_automaton import SuffixAutomatonDrafter
from multispec.drafters.suffix_decoding import SuffixDecoding
from multispec.drafters.swift import Swift
from multispec.drafters.token_recycling import TokenRecycling
from multispec.drafters.triforce import TriForce
from multispec.drafters.zipar import ZipAR

__all__ = [
    "ADED",
    "ANPD",
    "LLMA",
    "SJD",
    "Among",
    "BestGain",
    "Cacheback",
    "Cascade",
    "CosineSkip",
    "Datastore",
    "DepthNgram",
    "DraftModel",
    "EachRow",
    "EarlyExit",
    "Fallback",
    "HorizontalCascade",
    "Jacobi",
    "Lookahead",
    "MaxGram",
    "Merged",
    "NGrammys",
    "NgramCounts",
    "NgramModel",
    "PLDPlus",
    "PreviousFrame",
    "PromptLookup",
    "Quantised",
    "Reencoded",
    "Rest",
    "RowCopy",
    "RowDrafter",
    "ScdMaximal",
    "SharedVocabulary",
    "SjdPac",
    "SkipLayers",
    "SparseCache",
    "SuffixAutomatonDrafter",
    "SuffixDecoding",
    "Swift",
    "TokenRecycling",
    "TriForce",
    "ZipAR",
    "build_datastore",
    "search_layers",
]
