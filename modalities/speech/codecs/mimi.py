"""Mimi: Defossez et al. (2024), arXiv 2410.00037, section 3.3. A semantic codebook and acoustic ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.errors import UnsupportedError
from multispec.modalities.speech.codecs._checks import (
    check_books,
    check_codes,
    check_sound,
    read_model,
    require_type,
    sound,
    whole_frames,
)
from multispec.modalities.speech.codecs._reach import Hears, Looks, heard, trimmed_layers


@dataclass(frozen=True)
class MimiCodec:
    """A sound through a ``MimiModel``, with its first ``num_codebooks`` codebooks (Moshi: 8, CSM: all 32).

    It is causal: no frame changes samples before it. Attention looks back over a window in each layer, which
    together is a minute and more; what is far back changes little.

    >>> codec = MimiCodec.load("kyutai/mimi", num_codebooks=8)                 # doctest: +SKIP
    >>> codec.encode(torch.rand(1, 24000)).shape                               # doctest: +SKIP
    torch.Size([13, 8])
    """

    model: Any
    num_codebooks: int
    encodes: bool = True

    @staticmethod
    def load(
        name_or_path: str | Path, *, device: str | torch.device = "cpu", num_codebooks: int | None = None
    ) -> MimiCodec:
        """The codec of a folder or hub id, in float32.

        Raises:
            ModelLoadError: it cannot be read.
            UsageError: more codebooks than the model has, or none but semantic ones.
            UnsupportedError: a checkpoint of the encoder alone.
        """
        from transformers import MimiModel

        read = read_model(MimiModel, name_or_path, device)
        return MimiCodec.from_model(read.model, num_codebooks=num_codebooks, encodes=read.encodes)

    @staticmethod
    def from_model(model: Any, *, num_codebooks: int | None = None, encodes: bool = True) -> MimiCodec:
        """Around a ``MimiModel``; all its codebooks unless a number is given.

        Raises:
            UsageError: another model, or a number of codebooks that it cannot be used with.
            UnsupportedError: a model of the encoder alone.
        """
        require_type(model, "MimiModel", "mimi")
        if model.decoder is None:
            raise UnsupportedError(
                "This Mimi checkpoint is an encoder alone (decoder_config is null), so codes cannot become "
                "sound. Load the complete one."
            )
        config = model.config
        known = range(int(config.num_semantic_quantizers), int(config.num_quantizers) + 1)
        count = check_books(num_codebooks, known, "This Mimi model")
        return MimiCodec(model.eval(), count, encodes and model.encoder is not None)

    @property
    def cardinality(self) -> int:
        """Entries of each codebook."""
        return int(self.model.config.codebook_size)

    @property
    def sampling_rate(self) -> int:
        """Samples a second."""
        return int(self.model.config.sampling_rate)

    @property
    def hop(self) -> int:
        """Samples of one frame."""
        return int(self.model.config.frame_size)

    @property
    def reach(self) -> tuple[int, int]:
        """By the kernels, and by the attention window in every layer."""
        return self._reach

    @cached_property
    def _reach(self) -> tuple[int, int]:
        config, decoder = self.model.config, self.model.decoder
        window = Looks((int(config.sliding_window) - 1) * int(config.num_hidden_layers), 0)
        layers: list[Hears] = [*_upsampling(decoder), window, *trimmed_layers(decoder.decoder_seanet)]
        return heard(layers, self.hop)

    @torch.inference_mode()
    def codebook(self, level: int, /) -> Float[Tensor, "V C"]:
        """The vector that each code adds to the latent, behind the projection of its half."""
        quantizer, semantic = self.model.quantizer, int(self.model.config.num_semantic_quantizers)
        half = quantizer.semantic_residual_vector_quantizer
        if level >= semantic:
            half, level = quantizer.acoustic_residual_vector_quantizer, level - semantic
        vectors: Tensor = half.layers[level].codebook.embed.detach()
        if half.output_proj is None:
            return vectors
        projected: Tensor = half.output_proj(vectors.T[None])[0].T
        return projected.contiguous()

    @torch.inference_mode()
    def encode(self, waveform: Float[Tensor, "C N"], /) -> Int[Tensor, "T K"]:
        """The codes of a sound, the last frame filled with silence.

        Raises:
            UsageError: an empty sound, or another number of channels.
            UnsupportedError: the checkpoint has no encoder.
        """
        check_sound(waveform, int(self.model.config.audio_channels), self.encodes)
        values = whole_frames(waveform, self.hop).to(self.model.device)
        codes: Tensor = self.model.encode(values[None], num_quantizers=self.num_codebooks).audio_codes
        return codes[0].T.contiguous().cpu()

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "T K"], /) -> Float[Tensor, "C N"]:
        """Samples in [-1, 1].

        Raises:
            UsageError: codes outside the codebook, or another number of codebooks.
        """
        check_codes(codes, self.num_codebooks, self.cardinality)
        if not len(codes):
            return torch.zeros(int(self.model.config.audio_channels), 0)
        given = codes.T[None].to(self.model.device)
        return sound(self.model.decode(given).audio_values[0], len(codes) * self.hop)


def _upsampling(decoder: Any) -> list[Hears]:
    return [] if decoder.upsample is None else trimmed_layers(decoder.upsample)
