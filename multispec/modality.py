"""What a modality must offer to the front door, and the one that offers nothing: bare ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from multispec.errors import PromptError, UsageError
from multispec.guidance import Guidance
from multispec.neighbours import Neighbours
from multispec.row import Stop
from multispec.sampling import Sampling
from multispec.stream import Prompt


@runtime_checkable
class StreamDecoder(Protocol):
    """Turns one row's symbols into output as they come; never gives half a character."""

    def push(self, token: int) -> Any:
        """What this symbol adds, or shows; None for nothing."""
        ...

    def finish(self) -> Any:
        """What was held back; None for nothing."""
        ...


@runtime_checkable
class Modality(Protocol):
    """Between symbols and what people read, see or hear."""

    def encode(self, prompt: Any) -> Prompt:
        """A prompt of any form that this modality knows."""
        ...

    @property
    def guidance(self) -> Guidance:
        """The convention of its models, for a caller who gives a scale alone."""
        ...

    @property
    def sampling(self) -> Sampling:
        """What its models are drawn with where nobody says otherwise."""
        ...

    @property
    def drafter(self) -> str:
        """The name of what drafts where there is no draft model and nobody says otherwise."""
        ...

    @property
    def neighbours(self) -> Neighbours | None:
        """Which symbols lie near each other, for relaxed rules; None where nothing says, as for words."""
        ...

    def unconditional(self, prompt: Prompt, negative: Any) -> Prompt:
        """The prompt of the other branch of guidance: ``negative``, or what the models use for nothing."""
        ...

    def stops(self, prompt: Prompt, strings: Sequence[str]) -> list[Stop]:
        """Fresh stop rules for one row."""
        ...

    def decode(self, prompt: Prompt, tokens: Sequence[int], strings: Sequence[str]) -> Any:
        """The output of a row, up to the first stop string, which is left out."""
        ...

    def stream(self, prompt: Prompt, strings: Sequence[str]) -> StreamDecoder:
        """A decoder for one row."""
        ...


class IdsOnly:
    """No modality: prompts are ids, and there is no output beside the tokens."""

    def encode(self, prompt: Any) -> Prompt:
        """Nothing but ids can be read.

        Raises:
            PromptError: always; words need a tokenizer.
        """
        raise PromptError(
            f"Without a tokenizer a prompt must be ids or a Prompt: got {type(prompt).__name__}. "
            "Pass tokenizer=... to multispec.load."
        )

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
        """What repeats itself needs no model."""
        return "prompt_lookup"

    @property
    def neighbours(self) -> None:
        """None: ids have no distances."""

    def unconditional(self, prompt: Prompt, negative: Any) -> Prompt:
        """``negative`` as ids; without it the last id of the prompt, as in transformers."""
        if negative is None:
            return replace(prompt, ids=prompt.ids[-1:], guidance=None, unconditional=None)
        if isinstance(negative, Prompt):
            return negative
        if not isinstance(negative, Tensor | list | tuple):
            raise UsageError(
                f"Without a tokenizer a negative prompt must be ids: got {type(negative).__name__}. "
                "Pass tokenizer=... to multispec.load."
            )
        ids = torch.as_tensor(negative, dtype=torch.long)
        return replace(prompt, ids=ids, guidance=None, unconditional=None)

    def stops(self, prompt: Prompt, strings: Sequence[str]) -> list[Stop]:
        """None.

        Raises:
            UsageError: stop strings need a tokenizer.
        """
        if strings:
            raise UsageError(
                f"Stop strings need a tokenizer: got {list(strings)}. Pass tokenizer=... to multispec.load."
            )
        return []

    def decode(self, prompt: Prompt, tokens: Sequence[int], strings: Sequence[str]) -> None:
        """Nothing."""

    def stream(self, prompt: Prompt, strings: Sequence[str]) -> StreamDecoder:
        """A decoder that says nothing."""
        return self

    def push(self, token: int) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""
