"""DAC: Kumar et al. (2023), arXiv 2306.06546. Residual codes in few dimensions, nearest by cosine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.modalities.speech.codecs._checks import (
    check_books,
    check_codes,
    check_sound,
    read_model,
    require_type,
    sound,
    whole_frames,
)
from multispec.modalities.speech.codecs._reach import heard, padded_layers


@dataclass(frozen=True)
class DacCodec:
    """A mono sound through a ``DacModel``, with the first ``num_codebooks`` of its codebooks.

    Models with odd strides (24 kHz) decode some samples less than ``hop`` a frame: those are silent, at the
    very end.

    >>> codec = DacCodec.load("descript/dac_44khz")                            # doctest: +SKIP
    >>> codec.encode(torch.rand(1, 44100)).shape                               # doctest: +SKIP
    torch.Size([87, 9])
    """

    model: Any
    num_codebooks: int
    encodes: bool = True

    @staticmethod
    def load(
        name_or_path: str | Path, *, device: str | torch.device = "cpu", num_codebooks: int | None = None
    ) -> DacCodec:
        """The codec of a folder or hub id, in float32.

        Raises:
            ModelLoadError: it cannot be read.
            UsageError: more codebooks than the model has.
        """
        from transformers import DacModel

        read = read_model(DacModel, name_or_path, device, ("encoder.",))
        return DacCodec.from_model(read.model, num_codebooks=num_codebooks, encodes=read.encodes)

    @staticmethod
    def from_model(model: Any, *, num_codebooks: int | None = None, encodes: bool = True) -> DacCodec:
        """Around a ``DacModel``; all its codebooks unless a number is given.

        Raises:
            UsageError: another model, or more codebooks than it has.
        """
        require_type(model, "DacModel", "dac")
        known = range(1, int(model.config.n_codebooks) + 1)
        return DacCodec(model.eval(), check_books(num_codebooks, known, "This DAC model"), encodes)

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
        return int(self.model.config.hop_length)

    @property
    def reach(self) -> tuple[int, int]:
        """By the kernels, the same on both sides."""
        return self._reach

    @cached_property
    def _reach(self) -> tuple[int, int]:
        return heard(padded_layers(self.model.decoder), self.hop)

    @torch.inference_mode()
    def codebook(self, level: int, /) -> Float[Tensor, "V C"]:
        """The vector that each code adds to the latent, behind the projection of its codebook."""
        quantizer = self.model.quantizer.quantizers[level]
        vectors: Tensor = quantizer.out_proj(quantizer.codebook.weight.T[None])[0].T
        return vectors.contiguous()

    @torch.inference_mode()
    def encode(self, waveform: Float[Tensor, "C N"], /) -> Int[Tensor, "T K"]:
        """The codes of a sound, the last frame filled with silence.

        Raises:
            UsageError: an empty sound, or more channels than one.
            UnsupportedError: the checkpoint has no encoder.
        """
        check_sound(waveform, 1, self.encodes)
        values = whole_frames(waveform, self.hop).to(self.model.device)
        codes: Tensor = self.model.encode(values[None], n_quantizers=self.num_codebooks).audio_codes
        return codes[0].T.contiguous().cpu()

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "T K"], /) -> Float[Tensor, "C N"]:
        """Samples in [-1, 1].

        Raises:
            UsageError: codes outside the codebook, or another number of codebooks.
        """
        check_codes(codes, self.num_codebooks, self.cardinality)
        if not len(codes):
            return torch.zeros(1, 0)
        given = codes.T[None].to(self.model.device)
        return sound(self.model.decode(audio_codes=given).audio_values, len(codes) * self.hop)
