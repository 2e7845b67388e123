"""The tokenizer of Higgs Audio v2 (Boson AI, 2025): X-Codec's layout, codebooks in few dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.modalities.speech.codecs import _semantic
from multispec.modalities.speech.codecs._checks import check_books, read_model, require_type


@dataclass(frozen=True)
class HiggsAudioCodec:
    """A mono sound through a ``HiggsAudioV2TokenizerModel``, with its first ``num_codebooks`` codebooks.

    >>> codec = HiggsAudioCodec.load("bosonai/higgs-audio-v2-tokenizer")  # doctest: +SKIP
    >>> codec.encode(torch.rand(1, 24000)).shape  # doctest: +SKIP
    torch.Size([25, 8])
    """

    model: Any
    num_codebooks: int
    encodes: bool = True

    @staticmethod
    def load(
        name_or_path: str | Path, *, device: str | torch.device = "cpu", num_codebooks: int | None = None
    ) -> HiggsAudioCodec:
        """The codec of a folder or hub id, in float32.

        Raises:
            ModelLoadError: it cannot be read.
            UsageError: a number of codebooks that no bandwidth of the model gives.
        """
        from transformers import HiggsAudioV2TokenizerModel

        read = read_model(
            HiggsAudioV2TokenizerModel, name_or_path, device, _semantic.ENCODER + _semantic.UNUSED
        )
        return HiggsAudioCodec.from_model(read.model, num_codebooks=num_codebooks, encodes=read.encodes)

    @staticmethod
    def from_model(model: Any, *, num_codebooks: int | None = None, encodes: bool = True) -> HiggsAudioCodec:
        """Around a ``HiggsAudioV2TokenizerModel``; all its codebooks unless a number is given.

        Raises:
            UsageError: another model, or a number of codebooks that no bandwidth of it gives.
        """
        require_type(model, "HiggsAudioV2TokenizerModel", "higgs_audio_v2_tokenizer")
        count = check_books(num_codebooks, sorted(_semantic.bandwidths(model)), "This Higgs Audio model")
        return HiggsAudioCodec(model.eval(), count, encodes)

    @property
    def cardinality(self) -> int:
        """Entries of each codebook."""
        return int(self.model.config.codebook_size)

    @property
    def sampling_rate(self) -> int:
        """Samples a second."""
        return int(self.model.config.sample_rate)

    @property
    def hop(self) -> int:
        """Samples of one frame."""
        return int(self.model.config.hop_length)

    @property
    def reach(self) -> tuple[int, int]:
        """By the kernels of the acoustic decoder: semantic features are not heard."""
        return self._reach

    @cached_property
    def _reach(self) -> tuple[int, int]:
        return _semantic.reach(self.model)

    @torch.inference_mode()
    def codebook(self, level: int, /) -> Float[Tensor, "V C"]:
        """The vector that each code adds to the latent, behind the projection of its codebook."""
        quantizer = self.model.quantizer.quantizers[level]
        vectors: Tensor = quantizer.project_out(quantizer.codebook.embed)
        return vectors

    @torch.inference_mode()
    def encode(self, waveform: Float[Tensor, "C N"], /) -> Int[Tensor, "T K"]:
        """The codes of a sound, the last frame filled with silence.

        Raises:
            UsageError: an empty sound, or more channels than one.
            UnsupportedError: the checkpoint has no encoder.
        """
        return _semantic.encode(self.model, waveform, self.num_codebooks, self.encodes)

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "T K"], /) -> Float[Tensor, "C N"]:
        """Samples in [-1, 1].

        Raises:
            UsageError: codes outside the codebook, or another number of codebooks.
        """
        return _semantic.decode(self.model, codes, self.num_codebooks)
