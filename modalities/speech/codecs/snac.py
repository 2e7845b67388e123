"""SNAC: Siuzdak et al. (2024), arXiv 2410.14411. Codes at several rates, seven to a frame."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from multispec.errors import ModelLoadError, UnsupportedError
from multispec.modalities.speech.codecs._checks import (
    check_books,
    check_codes,
    check_sound,
    sound,
    whole_frames,
)
from multispec.modalities.speech.codecs._reach import Hears, Spreads, heard, padded_layers
from multispec.modalities.speech.codecs._snac_model import SnacConfig, SnacModel, folded

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class SnacCodec:
    """A mono sound through a SNAC model.

    A frame is one code of the slowest codebook and all codes beside it, those of each codebook together (1, 2
    and 4 codes with strides 4, 2, 1, so that ``num_codebooks`` is 7). The noise of a frame is drawn from its
    codes: a part decodes as it does within the whole.

    >>> codec = SnacCodec.load("hubertsiuzdak/snac_24khz")                     # doctest: +SKIP
    >>> codec.encode(torch.rand(1, 24000)).shape                               # doctest: +SKIP
    torch.Size([12, 7])
    """

    model: SnacModel
    encodes: bool = True

    @staticmethod
    def load(
        name_or_path: str | Path, *, device: str | torch.device = "cpu", num_codebooks: int | None = None
    ) -> SnacCodec:
        """The codec of a folder or hub id with config.json and the authors' weights, in float32.

        Raises:
            ModelLoadError: it cannot be read.
            UnsupportedError: a model with attention (those for music).
            UsageError: another number of codes a frame than the model has.
        """
        model = SnacModel(_config(name_or_path))
        state = folded(_state(name_or_path))
        missing = sorted(set(model.state_dict()) - set(state))
        needed = [name for name in missing if not name.startswith("encoder.")]
        if needed or set(state) - set(model.state_dict()):
            odd = (needed or sorted(set(state) - set(model.state_dict())))[0]
            raise ModelLoadError(
                f"The weights in {str(name_or_path)!r} are not those of its config.json: {odd!r} is "
                f"{'missing' if needed else 'not known'}. Copy both files of the complete checkpoint."
            )
        model.load_state_dict(state, strict=False)
        codec = SnacCodec(model.to(device).eval(), encodes=not missing)
        check_books(num_codebooks, [codec.num_codebooks], "This SNAC model")
        return codec

    @staticmethod
    def from_model(model: SnacModel) -> SnacCodec:
        """Around a ``SnacModel``."""
        return SnacCodec(model.eval())

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """(codebook, number within the frame) of each code of a frame.

        >>> SnacCodec(SnacModel(SnacConfig(encoder_dim=2, decoder_dim=16))).places
        ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3))
        """
        config = self.model.config
        return tuple(
            (book, n) for book, stride in enumerate(config.vq_strides) for n in range(config.frame // stride)
        )

    @property
    def num_codebooks(self) -> int:
        """Codes of a frame."""
        return len(self.places)

    @property
    def cardinality(self) -> int:
        """Entries of each codebook."""
        return self.model.config.codebook_size

    @property
    def sampling_rate(self) -> int:
        """Samples a second."""
        return self.model.config.sampling_rate

    @property
    def hop(self) -> int:
        """Samples of one frame."""
        return self.model.config.hop

    @property
    def reach(self) -> tuple[int, int]:
        """By the kernels, the same on both sides."""
        return self._reach

    @cached_property
    def _reach(self) -> tuple[int, int]:
        frame = self.model.config.frame
        layers: list[Hears] = [Spreads(frame, frame), *padded_layers(self.model.decoder)]
        return heard(layers, self.hop)

    @torch.inference_mode()
    def codebook(self, level: int, /) -> Float[Tensor, "V C"]:
        """The vector that each code adds to the latent, for the ``level``-th code of a frame."""
        book = self.model.codebooks[self.places[level][0]]
        vectors: Tensor = book.out_proj(book.codebook.weight.T[None])[0].T
        return vectors.contiguous()

    @torch.inference_mode()
    def encode(self, waveform: Float[Tensor, "C N"], /) -> Int[Tensor, "T K"]:
        """The codes of a sound, the last frame filled with silence.

        Raises:
            UsageError: an empty sound, or more channels than one.
            UnsupportedError: the checkpoint has no encoder.
        """
        check_sound(waveform, 1, self.encodes)
        values = whole_frames(waveform, self.hop)[None].to(self._like)
        books = [codes.view(values.shape[-1] // self.hop, -1) for codes in self.model.encode(values)]
        return torch.stack([books[book][:, number] for book, number in self.places], 1).cpu()

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "T K"], /) -> Float[Tensor, "C N"]:
        """Samples in [-1, 1].

        Raises:
            UsageError: codes outside the codebook, or another number of codes a frame.
        """
        check_codes(codes, self.num_codebooks, self.cardinality)
        if not len(codes):
            return torch.zeros(1, 0)
        counts = [sum(book == own for own, _ in self.places) for book in range(len(self.model.codebooks))]
        given = [part.flatten().to(self._like.device) for part in codes.split(counts, dim=1)]
        return sound(self.model.decode(given, self._noise(codes))[0], len(codes) * self.hop)

    @property
    def _like(self) -> Tensor:
        weight: Tensor = self.model.codebooks[0].codebook.weight
        return weight

    def _noise(self, codes: Tensor) -> list[Tensor]:
        """Noise ``[1, 1, N]`` of each rate of the decoder, frame by frame from the codes of the frame."""
        config = self.model.config
        sizes: list[int] = []
        for rate in config.decoder_rates:
            sizes.append((sizes[-1] if sizes else config.frame) * rate)
        frames = torch.stack([_drawn(frame, sum(sizes)) for frame in codes.tolist()])
        return [part.reshape(1, 1, -1).to(self._like) for part in frames.split(sizes, dim=1)]


def _drawn(codes: list[int], count: int) -> Tensor:
    seed = 0
    for code in codes:
        seed = (seed * 0x9E3779B97F4A7C15 + code + 1) % 2**63
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def _config(name_or_path: str | Path) -> SnacConfig:
    path = _file(name_or_path, "config.json")
    try:
        found: Any = None if path is None else json.loads(path.read_text("utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, Mapping) or "vq_strides" not in found:
        raise ModelLoadError(
            f"No SNAC codec can be read from {str(name_or_path)!r}: expected a folder with config.json, "
            f"which names vq_strides, and one of {', '.join(_WEIGHTS)}, or a hub id. Got {found!r}."
        )
    known = {field.name for field in fields(SnacConfig)}
    config = SnacConfig(**{name: value for name, value in found.items() if name in known})
    if config.attn_window_size is not None:
        raise UnsupportedError(
            f"{str(name_or_path)!r} is a SNAC model with attention (attn_window_size "
            f"{config.attn_window_size}), made for music. Speech models use hubertsiuzdak/snac_24khz."
        )
    return config


def _state(name_or_path: str | Path) -> dict[str, Tensor]:
    path = next((found for name in _WEIGHTS if (found := _file(name_or_path, name)) is not None), None)
    if path is None:
        raise ModelLoadError(
            f"{str(name_or_path)!r} has none of {', '.join(_WEIGHTS)}: copy the weights beside it."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:  # truncated archives raise many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"No weights can be read from {str(path)!r}: {first} The file may be cut short: copy it again."
        ) from error


def _file(name_or_path: str | Path, name: str) -> Path | None:
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(str(name_or_path), name))
    except Exception:  # the hub raises many kinds: offline, no such file, no such name
        return None
