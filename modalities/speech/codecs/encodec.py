"""EnCodec: Defossez et al. (2022), arXiv 2210.13438. Residual codes of SEANet features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
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
from multispec.modalities.speech.codecs._reach import UNBOUNDED, heard, trimmed_layers

# Frames over which the memory of the recurrent layers is looked at, and what counts as forgotten.
_LOOKED, _FORGOTTEN = 256, 2.0**-15


@dataclass(frozen=True)
class EncodecCodec:
    """A sound through an ``EncodecModel``, with the first ``num_codebooks`` of its codebooks.

    With ``stereo`` a mono model codes both channels, whose codebooks take turns (left, right), as in
    MusicGen's stereo models. ``encodes`` says whether the weights of the encoder are there.

    >>> codec = EncodecCodec.load("facebook/encodec_24khz", num_codebooks=8)   # doctest: +SKIP
    >>> codec.encode(torch.rand(1, 24000)).shape                               # doctest: +SKIP
    torch.Size([75, 8])
    """

    model: Any
    num_codebooks: int
    stereo: bool = False
    encodes: bool = True

    @staticmethod
    def load(
        name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        num_codebooks: int | None = None,
        stereo: bool = False,
    ) -> EncodecCodec:
        """The codec of a folder or hub id, in float32.

        Raises:
            ModelLoadError: it cannot be read.
            UsageError: a number of codebooks that no bandwidth of the model gives.
            UnsupportedError: a model that codes loudness beside the codes.
        """
        from transformers import EncodecModel

        read = read_model(EncodecModel, name_or_path, device)
        return EncodecCodec.from_model(
            read.model, num_codebooks=num_codebooks, stereo=stereo, encodes=read.encodes
        )

    @staticmethod
    def from_model(
        model: Any, *, num_codebooks: int | None = None, stereo: bool = False, encodes: bool = True
    ) -> EncodecCodec:
        """Around an ``EncodecModel``; all its codebooks unless a number is given.

        Raises:
            UsageError: another model, or a number of codebooks that no bandwidth of it gives.
            UnsupportedError: a model that codes loudness beside the codes.
        """
        require_type(model, "EncodecModel", "encodec")
        config = model.config
        if config.normalize or config.chunk_length is not None or config.norm_type != "weight_norm":
            raise UnsupportedError(
                "This EnCodec model (the 48 kHz one) codes overlapping chunks, each with a loudness that is "
                "no code, so a stream of codes alone does not say how it sounds. Use a model of 24 or 32 kHz."
            )
        channels = 2 if stereo else 1
        known = sorted({channels * books for books in _bandwidths(model)})
        count = check_books(num_codebooks, known, "This EnCodec model")
        return EncodecCodec(model.eval(), count, stereo, encodes)

    @property
    def channels(self) -> int:
        """Channels of its sound."""
        return 2 if self.stereo else int(self.model.config.audio_channels)

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
        """By the kernels, and by how long the recurrent layers remember, measured on their own weights."""
        return self._reach

    @cached_property
    def _reach(self) -> tuple[int, int]:
        before, behind = heard(trimmed_layers(self.model.decoder), self.hop)
        memory = _memory(self.model.decoder)
        return (UNBOUNDED if memory == UNBOUNDED else before + memory), behind

    def codebook(self, level: int, /) -> Float[Tensor, "V C"]:
        """The vector that each code adds to the latent."""
        vectors: Tensor = self.model.quantizer.layers[level // (1 + self.stereo)].codebook.embed
        return vectors.detach()

    @torch.inference_mode()
    def encode(self, waveform: Float[Tensor, "C N"], /) -> Int[Tensor, "T K"]:
        """The codes of a sound, the last frame filled with silence.

        Raises:
            UsageError: an empty sound, or another number of channels.
            UnsupportedError: the checkpoint has no encoder.
        """
        check_sound(waveform, self.channels, self.encodes)
        values = whole_frames(waveform, self.hop).to(self.model.device)
        books = self.num_codebooks // (1 + self.stereo)
        values = rearrange(values, "c n -> c 1 n") if self.stereo else values[None]
        given = self.model.encode(values, bandwidth=_bandwidths(self.model)[books]).audio_codes[0]
        codes: Tensor = rearrange(given, "c k t -> t (k c)")
        return codes.cpu()

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "T K"], /) -> Float[Tensor, "C N"]:
        """Samples in [-1, 1].

        Raises:
            UsageError: codes outside the codebook, or another number of codebooks.
        """
        check_codes(codes, self.num_codebooks, self.cardinality)
        if not len(codes):
            return torch.zeros(self.channels, 0)
        given = rearrange(codes.to(self.model.device), "t (k c) -> 1 c k t", c=1 + self.stereo)
        samples = self.model.decode(given, [None]).audio_values
        return sound(rearrange(samples, "b c n -> (b c) n"), len(codes) * self.hop)


def _bandwidths(model: Any) -> dict[int, float]:
    """A bandwidth for each number of codebooks that the model can be asked for."""
    limit, count = model.config.num_quantizers, model.quantizer.get_num_quantizers_for_bandwidth
    return {min(count(one), limit): one for one in reversed(model.config.target_bandwidths)}


@torch.inference_mode()
def _memory(decoder: Any) -> int:
    """Frames after which the recurrent layers have forgotten an input, with half as many again."""
    recurrent = [module for module in decoder.modules() if isinstance(module, torch.nn.LSTM)]
    lasting = 0
    for lstm in recurrent:
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn(_LOOKED, 1, lstm.input_size, generator=draw).to(next(lstm.parameters()))
        other = inputs.clone()
        other[0] = -other[0]
        plain, changed = lstm(inputs)[0], lstm(other)[0]
        far = (plain - changed).abs().amax((1, 2)) > _FORGOTTEN * plain.abs().max()
        lasting += int(far.nonzero()[-1]) if bool(far.any()) else 0
    return UNBOUNDED if lasting >= _LOOKED - 1 else lasting * 3 // 2
