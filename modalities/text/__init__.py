"""Words: tokenizers, chat templates, incremental detokenisation, stop strings."""

from multispec.modalities.text.adapter import Text, load_tokenizer
from multispec.modalities.text.detokenize import Detokenizer, StopStrings, TextStream

__all__ = ["Detokenizer", "StopStrings", "Text", "TextStream", "load_tokenizer"]
