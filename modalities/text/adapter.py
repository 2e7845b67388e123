"""The text modality: a tokenizer and its chat template around the core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from multispec.errors import ModelLoadError, PromptError
from multispec.guidance import Guidance
from multispec.modalities.text.detokenize import Detokenizer, StopStrings, TextStream, first_stop
from multispec.row import Stop
from multispec.sampling import Sampling
from multispec.stream import Prompt

# Enough ids of the prompt for a decoder to know whether a space comes before the first new word.
_CONTEXT = 4


def load_tokenizer(name_or_path: str | Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder or hub id, or None where it has none.

    Raises:
        ModelLoadError: tokenizer files that cannot be read.
    """
    folder = Path(name_or_path)
    files = (
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "vocab.json",
        "spiece.model",
    )
    if folder.is_dir() and not any((folder / name).is_file() for name in files):
        return None
    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers and transformers raise many kinds for broken files
        raise ModelLoadError(
            f"The tokenizer in {str(name_or_path)!r} cannot be read: {error}. Copy tokenizer.json again, or "
            "pass tokenizer=... yourself."
        ) from error


class Text:
    """Words in, words out. ``model`` tells whether prompts go to an encoder."""

    def __init__(self, tokenizer: Any, model: Any = None) -> None:
        self.tokenizer = tokenizer
        self._config = getattr(model, "config", None)
        self._generation = getattr(model, "generation_config", None)

    def encode(self, prompt: Any) -> Prompt:
        """A string, or a chat: a list of messages with role and content.

        Raises:
            PromptError: any other kind, a text without symbols, or a chat without a template.
        """
        if isinstance(prompt, str):
            return self._prompt(self.tokenizer(prompt)["input_ids"], prompt)
        if isinstance(prompt, (list, tuple)) and prompt and all(isinstance(m, Mapping) for m in prompt):
            return self._prompt(self._chat(prompt), str(prompt))
        raise PromptError(
            f"A prompt is text, a list of messages, ids, or a Prompt: got {type(prompt).__name__}."
        )

    def _chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        if not getattr(self.tokenizer, "chat_template", None):
            raise PromptError(
                "This tokenizer has no chat template, so messages cannot be laid out. Pass one string, or "
                "set tokenizer.chat_template."
            )
        text = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _prompt(self, ids: Sequence[int], shown: str) -> Prompt:
        if not len(ids):
            raise PromptError(
                f"The prompt {shown!r} gives no symbols. Pass some text, or ids such as "
                "[tokenizer.bos_token_id]."
            )
        row = torch.tensor(list(ids), dtype=torch.long)
        if not getattr(self._config, "is_encoder_decoder", False):
            return Prompt(ids=row)
        start = getattr(self._generation, "decoder_start_token_id", None)
        if start is None:
            start = getattr(self._config, "decoder_start_token_id", None)
        if start is None:
            raise PromptError(
                "The model names no decoder_start_token_id. Set it in its generation config, or pass "
                "Prompt(ids=..., conditioning={'input_ids': ...})."
            )
        return Prompt(ids=torch.tensor([start]), conditioning={"input_ids": row[None]})

    @property
    def guidance(self) -> Guidance:
        """transformers' convention for text."""
        return Guidance(convention="log_softmax")

    @property
    def sampling(self) -> Sampling:
        """The model's own law."""
        return Sampling()

    @property
    def drafter(self) -> str:
        """Texts quote themselves."""
        return "prompt_lookup"

    @property
    def neighbours(self) -> None:
        """None: ids of words have no distances."""

    def unconditional(self, prompt: Prompt, negative: Any) -> Prompt:
        """``negative`` as a prompt; without it the last id of the prompt, as in transformers.

        Raises:
            PromptError: an encoder-decoder model without a negative text.
        """
        if isinstance(negative, Prompt):
            return negative
        if isinstance(negative, Tensor):
            return replace(prompt, ids=negative, guidance=None, unconditional=None)
        if negative is not None:
            return self.encode(negative)
        if prompt.conditioning:
            raise PromptError(
                "Guidance of an encoder-decoder model needs the other branch's text. Pass negative='...'."
            )
        return Prompt(ids=prompt.ids[-1:])

    def _context(self, prompt: Prompt) -> list[int]:
        context: list[int] = prompt.ids[-_CONTEXT:].tolist()
        return context

    def stops(self, prompt: Prompt, strings: Sequence[str]) -> list[Stop]:
        """A rule for the stop strings, with a state of its own."""
        return [StopStrings(self.tokenizer, strings, self._context(prompt))] if strings else []

    def decode(self, prompt: Prompt, tokens: Sequence[int], strings: Sequence[str]) -> str:
        """The text after the prompt, up to the first stop string."""
        detokenizer = Detokenizer(self.tokenizer, self._context(prompt))
        text = "".join(detokenizer.push(token) for token in tokens) + detokenizer.finish()
        stop = first_stop(text, strings)
        return text if stop < 0 else text[:stop]

    def stream(self, prompt: Prompt, strings: Sequence[str]) -> TextStream:
        """A decoder for one row."""
        return TextStream(self.tokenizer, strings, self._context(prompt))
