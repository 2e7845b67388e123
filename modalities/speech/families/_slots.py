"""What models with parallel slots share: how they are read, and the family around them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from multispec.errors import ModelLoadError, UnknownNameError
from multispec.modalities.speech.family import SpeechCodec
from multispec.modalities.speech.layouts import Delayed
from multispec.sampling import Sampling
from multispec.stream import Prompt
from multispec.targets.loading import default_device


def read_model(
    kind: Any, name_or_path: str | Path, device: str | torch.device | None, dtype: torch.dtype | str | None
) -> Any:
    """A complete transformers model of class ``kind``, ready for inference; float32 on a CPU.

    Raises:
        ModelLoadError: it cannot be read, or weights are missing.
    """
    place = torch.device(device) if device is not None else default_device()
    chosen = dtype if dtype is not None else (torch.float32 if place.type == "cpu" else "auto")
    try:
        model, info = kind.from_pretrained(name_or_path, dtype=chosen, output_loading_info=True)
    except MemoryError:
        raise
    except Exception as error:  # safetensors and transformers raise many kinds for broken files
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"No {kind.__name__} can be read from {str(name_or_path)!r}: {first} Expected a folder with "
            "config.json and model.safetensors, or a hub id that is reachable."
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelLoadError(
            f"{len(missing)} weights of {str(name_or_path)!r} are missing, the first is {missing[0]!r}: "
            "transformers would fill them with random numbers. Copy the complete checkpoint."
        )
    return model.to(place).eval()


def read_tokenizer(name_or_path: str | Path) -> Any:
    """The tokenizer beside a model.

    Raises:
        ModelLoadError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"No tokenizer can be read from {str(name_or_path)!r}: {str(error).splitlines()[0]} "
            "Copy the tokenizer files beside config.json."
        ) from error


def only_own_voice(name: str, voice: str | None) -> None:
    """A model without named voices.

    Raises:
        UnknownNameError: a voice was asked for.
    """
    if voice is not None:
        raise UnknownNameError(f"voice of {name}, which has one without a name,", voice, ())


@dataclass(frozen=True, kw_only=True)
class SlotFamily:
    """What all families with parallel slots answer in the same way; ``layout`` is that of every prompt."""

    codec: SpeechCodec
    layout: Delayed
    sampling: Sampling = field(default_factory=Sampling)
    voices: tuple[str, ...] = ()
    text_limit: int = 1000

    def started(self, ids: int, **fields: Any) -> Prompt:
        """A prompt of one step of ``ids``, with the stream of the layout."""
        start = torch.full((self.layout.num_codebooks,), ids, dtype=torch.long)
        return Prompt(ids=start, spec=self.layout.spec, **fields)

    def layout_of(self, prompt: Prompt, /) -> Delayed:
        """The layout, as long as the prompt's own stream."""
        length = None if prompt.spec is None else prompt.spec.fixed_length
        if length is None:
            return self.layout
        behind = max(self.layout.delays) + (self.layout.end is not None)
        return replace(self.layout, frames=length // self.layout.num_codebooks - behind)
