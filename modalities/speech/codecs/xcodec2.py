"""X-Codec2: Ye et al. (2025), arXiv 2502.04128, section 3.1. One code a frame: a point of a lattice (FSQ)."""

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
class Xcodec2Codec:
    """A mono sound through an ``Xcodec2Model`` and its feature ``extractor``.

    Its decoder has attention and norms over the whole sound, so that ``reach`` has no bound: a stream has to
    choose how far it looks, and then comes near the whole sound without being equal. A sound has one frame
    more than fills it, as the feature extractor has it.

    >>> codec = Xcodec2Codec.load("HKUSTAudio/xcodec2-hf")                     # doctest: +SKIP
    >>> codec.encode(torch.rand(1, 16000)).shape                               # doctest: +SKIP
    torch.Size([51, 1])
    """

    model: Any
    extractor: Any
    encodes: bool = True
    num_codebooks: int = 1
    reach: tuple[int, int] = (UNBOUNDED, UNBOUNDED)

    @staticmethod
    def load(
        name_or_path: str | Path, *, device: str | torch.device = "cpu", num_codebooks: int | None = None
    ) -> Xcodec2Codec:
        """The codec of a folder or hub id, in float32.

        Raises:
            ModelLoadError: it cannot be read.
            UsageError: more codebooks than its one.
        """
        from transformers import Xcodec2FeatureExtractor, Xcodec2Model

        check_books(num_codebooks, [1], "X-Codec2")
        read = read_model(Xcodec2Model, name_or_path, device, _fsq.ENCODER)
        rate = int(read.model.config.sampling_rate)
        extractor = _fsq.features(Xcodec2FeatureExtractor, name_or_path, read.model, rate)
        return Xcodec2Codec(read.model, extractor, read.encodes)

    @staticmethod
    def from_model(model: Any) -> Xcodec2Codec:
        """Around an ``Xcodec2Model``.

        Raises:
            UsageError: another model.
        """
        from transformers import Xcodec2FeatureExtractor

        require_type(model, "Xcodec2Model", "xcodec2")
        rate = int(model.config.sampling_rate)
        return Xcodec2Codec(model.eval(), _fsq.made(Xcodec2FeatureExtractor, model, rate))

    @property
    def cardinality(self) -> int:
        """Points of the lattice."""
        return _fsq.cardinality(self.model)

    @property
    def sampling_rate(self) -> int:
        """Samples a second."""
        return int(self.model.config.sampling_rate)

    @property
    def hop(self) -> int:
        """Samples of one frame."""
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
