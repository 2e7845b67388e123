"""NeuCodec (Neuphonic, 2025), arXiv 2509.09550: X-Codec2's layout, which hears 16 kHz and speaks 24 kHz."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.modalities.speech.codecs import _fsq
from multispec.modalities.speech.codecs._checks import check_books, read_model, require_type
from multispec.modalities.speech.codecs._reach import UNBOUNDED


@dataclass(frozen=True)
class NeuCodec:
    """A mono sound through a ``NeuCodecModel`` and its feature ``extractor``.

    ``encode`` takes a sound at ``sampling_rate``, that of its own speech, and brings it down to what the
    encoder hears. ``reach`` has no bound, as in ``Xcodec2Codec``.

    >>> codec = NeuCodec.load("neuphonic/neucodec")                            # doctest: +SKIP
    >>> codec.encode(torch.rand(1, 24000)).shape                               # doctest: +SKIP
    torch.Size([50, 1])
    """

    model: Any
    extractor: Any
    encodes: bool = True
    num_codebooks: int = 1
    reach: tuple[int, int] = (UNBOUNDED, UNBOUNDED)

    @staticmethod
    def load(
        name_or_path: str | Path, *, device: str | torch.device = "cpu", num_codebooks: int | None = None
    ) -> NeuCodec:
        """The codec of a folder or hub id, in float32.

        Raises:
            ModelLoadError: it cannot be read.
            UsageError: more codebooks than its one.
        """
        from transformers import NeuCodecFeatureExtractor, NeuCodecModel

        check_books(num_codebooks, [1], "NeuCodec")
        read = read_model(NeuCodecModel, name_or_path, device, _fsq.ENCODER)
        rate = int(read.model.config.input_sampling_rate)
        extractor = _fsq.features(NeuCodecFeatureExtractor, name_or_path, read.model, rate)
        return NeuCodec(read.model, extractor, read.encodes)

    @staticmethod
    def from_model(model: Any) -> NeuCodec:
        """Around a ``NeuCodecModel``.

        Raises:
            UsageError: another model.
        """
        from transformers import NeuCodecFeatureExtractor

        require_type(model, "NeuCodecModel", "neucodec")
        rate = int(model.config.input_sampling_rate)
        return NeuCodec(model.eval(), _fsq.made(NeuCodecFeatureExtractor, model, rate))

    @property
    def cardinality(self) -> int:
        """Points of the lattice."""
        return _fsq.cardinality(self.model)

    @property
    def sampling_rate(self) -> int:
        """Samples a second of what it speaks."""
        return int(self.model.config.output_sampling_rate)

    @property
    def hop(self) -> int:
        """Samples of one frame of what it speaks."""
        return int(self.model.config.hop_length)

    def codebook(self, level: int, /) -> Float[Tensor, "V C"]:
        """The lattice itself."""
        return _fsq.lattice(self.model)

    @torch.inference_mode()
    def encode(self, waveform: Float[Tensor, "C N"], /) -> Int[Tensor, "T K"]:
        """The codes of a sound, silence behind it.

        Raises:
            UsageError: an empty sound, or more channels than one.
            UnsupportedError: the checkpoint has no encoder, or torchaudio is not installed.
        """
        return _fsq.encode(self.model, self.extractor, waveform, self.sampling_rate, self.encodes)

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "T K"], /) -> Float[Tensor, "C N"]:
        """Samples in [-1, 1].

        Raises:
            UsageError: codes outside the codebook, or another number of codebooks.
        """
        return _fsq.decode(self.model, codes, self.hop)
