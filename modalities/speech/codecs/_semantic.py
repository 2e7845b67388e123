"""What X-Codec and Higgs Audio's tokenizer share: acoustic and semantic features, DAC's decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multispec.modalities.speech.codecs._checks import check_codes, check_sound, sound, whole_frames
from multispec.modalities.speech.codecs._reach import heard, padded_layers

# Weights that only the way from sound to codes needs.
ENCODER = ("acoustic_encoder.", "encoder_semantic.", "semantic_model.", "fc.")
# Weights of the checkpoint that nothing in it uses for codes or sound: the loss of its training.
UNUSED = ("decoder_semantic.", "fc1.")


def bandwidths(model: Any) -> dict[int, float]:
    """A bandwidth for each number of codebooks that the model can be asked for."""
    count, limit = model.quantizer.get_num_quantizers_for_bandwidth, model.config.num_quantizers
    return {min(count(one), limit): one for one in reversed(model.config.target_bandwidths)}


def reach(model: Any) -> tuple[int, int]:
    """By the kernels of the acoustic decoder: semantics are not heard."""
    return heard(padded_layers(model.acoustic_decoder), int(model.config.hop_length))


def encode(model: Any, waveform: Tensor, num_codebooks: int, encodes: bool) -> Tensor:
    """``[T, K]`` codes of a mono sound."""
    check_sound(waveform, 1, encodes)
    values = whole_frames(waveform, int(model.config.hop_length)).to(model.device)
    codes: Tensor = model.encode(values[None], bandwidth=bandwidths(model)[num_codebooks]).audio_codes
    return codes[0].T.contiguous().cpu()


def decode(model: Any, codes: Tensor, num_codebooks: int) -> Tensor:
    """``[1, N]`` samples."""
    check_codes(codes, num_codebooks, int(model.config.codebook_size))
    if not len(codes):
        return torch.zeros(1, 0)
    samples = model.decode(codes.T[None].to(model.device)).audio_values
    return sound(samples[0], len(codes) * int(model.config.hop_length))
