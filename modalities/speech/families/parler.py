"""Parler-TTS: Lyth and King (2024), MusicGen's layout over DAC, with an end in every codebook.

transformers has no class for it, and the code of its authors is not run here: the layout is what can be
offered, for those who have a target of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from multispec.errors import UnsupportedError
from multispec.modalities.speech.family import SpeechFamily
from multispec.modalities.speech.layouts import Delayed


def fits(config: Any) -> bool:
    """True for Parler-TTS."""
    return getattr(config, "model_type", None) == "parler_tts"


def layout_of(decoder: Any, frames: int | None = None) -> Delayed:
    """The layout of a decoder's config: each codebook a step behind, each ends by itself, in turn.

    >>> from types import SimpleNamespace
    >>> decoder = SimpleNamespace(num_codebooks=3, eos_token_id=1024, bos_token_id=1025)
    >>> layout_of(decoder).delays
    (0, 1, 2)
    """
    return Delayed(
        delays=tuple(range(decoder.num_codebooks)),
        codes_per_book=decoder.eos_token_id,
        start=decoder.bos_token_id,
        end=decoder.eos_token_id,
        ending="every_slot",
        frames=frames,
    )


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> SpeechFamily:
    """Not without a class for it.

    Raises:
        UnsupportedError: always; says what there is.
    """
    raise UnsupportedError(
        f"{str(name_or_path)!r} is a Parler-TTS model, for which transformers has no class. Its layout is "
        "multispec.modalities.speech.families.parler.layout_of(config): write a target for the "
        "model and pass it to multispec.generator.Generator, or use Dia or MusicGen, which have such "
        "slots too."
    )
