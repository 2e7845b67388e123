"""What drives a draft model: prompts and logits on the vocabulary of the other side, caches that go back."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from multispec.errors import UnsupportedError
from multispec.protocols import TargetSession
from multispec.stream import Prompt


def fit(logits: Tensor, vocab_size: int) -> Tensor:
    """Draft logits on the target's vocabulary: padding is cut, missing symbols get no mass."""
    missing = vocab_size - logits.shape[-1]
    if missing == 0:
        return logits
    return F.pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits[..., :vocab_size]


def shown(prompt: Prompt, largest: int, shared: bool, guidance: bool) -> Prompt:
    """A prompt as a draft model of ids up to ``largest`` reads it, where prompts share the vocabulary."""
    ids = prompt.ids.clamp(max=largest) if shared else prompt.ids
    if not guidance or prompt.unconditional is None:
        return replace(prompt, ids=ids, guidance=None, unconditional=None)
    other = shown(prompt.unconditional, largest, shared, guidance)
    return replace(prompt, ids=ids, unconditional=other)


def go_back(session: TargetSession, place: int, length: int) -> None:
    """Take everything behind the first ``length`` symbols from a place of a session.

    Raises:
        UnsupportedError: a state that cannot go back so far.
    """
    if session.length(place) > length and session.rewind(place, length) > length:
        raise UnsupportedError(
            f"A drafter inside a drafter has to go back to symbol {length}, and this model keeps a state "
            "that is not cropped. Use a model with a key/value cache, or max_gram, for the inner drafter."
        )
