"""Ways of drafting; one file per method."""

from multispec.drafters.draft_model import DraftModel
from multispec.drafters.jacobi import Jacobi
from multispec.drafters.prompt_lookup import PromptLookup
from multispec.drafters.row_copy import RowCopy
from multispec.drafters.rowwise import EachRow, RowDrafter
from multispec.drafters.scd_mc import ScdMaximal
from multispec.drafters.sjd import SJD
from multispec.drafters.sjd_pac import SjdPac
from multispec.drafters.zipar import ZipAR

__all__ = [
    "SJD",
    "DraftModel",
    "EachRow",
    "Jacobi",
    "PromptLookup",
    "RowCopy",
    "RowDrafter",
    "ScdMaximal",
    "SjdPac",
    "ZipAR",
]
