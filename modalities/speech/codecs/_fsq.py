"""What X-Codec2 and NeuCodec share: one codebook, a lattice, and a decoder that hears the whole sound."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multispec.errors import UnsupportedError
from multispec.modalities.speech.codecs._checks import check_codes, check_sound, sound

# Weights that only the way from sound to codes needs.
ENCODER = (
    "semantic_encoder.",
    "semantic_adapter.",
    "acoustic_encoder.",
    "fc_encoder.",
    "quantizer.project_in.",
)


def cardinality(model: Any) -> int:
    """Points of the lattice."""
    return math.prod(int(level) for level in model.config.quantization_levels)


def lattice(model: Any) -> Tensor:
    """``[V, L]`` points in [-1, 1]: neighbours in it are neighbours by construction."""
    points: Tensor = model.quantizer.quantizer.codebook
    return points.detach().float()


def features(kind: Any, name_or_path: str | Path, model: Any, rate: int) -> Any:
    """The feature extractor of a folder; the one that belongs to the model where the folder has none."""
    try:
        return kind.from_pretrained(name_or_path)
    except (OSError, ValueError):
        return made(kind, model, rate)


def made(kind: Any, model: Any, rate: int) -> Any:
    """The feature extractor that belongs to a model of ``rate`` samples a second."""
    return kind(sampling_rate=rate, hop_length=int(model.hop_length))


def encode(model: Any, extractor: Any, waveform: Tensor, rate: int, encodes: bool) -> Tensor:
    """``[T, 1]`` codes of a mono sound of ``rate`` samples a second."""
    check_sound(waveform, 1, encodes)
    try:
        from torchaudio.functional import resample

        heard = resample(waveform.float(), rate, extractor.sampling_rate)[0].cpu().numpy()
        given = extractor(heard, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    except (ImportError, OSError) as error:
        raise UnsupportedError(
            f"Encoding with {type(model).__name__} needs torchaudio, which cannot be imported ({error}): "
            "pip install 'multispec[speech]'"
        ) from error
    inputs = {name: given[name].to(model.device) for name in ("input_values", "input_features")}
    codes: Tensor = model.encode(**inputs).audio_codes[0].T.long().cpu()
    return codes.contiguous()


def decode(model: Any, codes: Tensor, hop: int) -> Tensor:
    """``[1, N]`` samples."""
    check_codes(codes, 1, cardinality(model))
    if not len(codes):
        return torch.zeros(1, 0)
    samples = model.decode(audio_codes=codes.T[None].to(model.device)).audio_values
    return sound(samples[0], len(codes) * hop)
