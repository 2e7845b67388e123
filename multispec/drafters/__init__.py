"""Ways of drafting; one file per method."""

from multispec.drafters.draft_model import DraftModel
from multispec.drafters.prompt_lookup import PromptLookup
from multispec.drafters.rowwise import EachRow, RowDrafter

__all__ = ["DraftModel", "EachRow", "PromptLookup", "RowDrafter"]
