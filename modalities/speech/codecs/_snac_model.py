"""The network of SNAC, with its published names of weights: DAC with codes at several rates, and noise.

Two things differ from how it was trained: weights come without weight normalisation, which is folded into
them when they are read, and the noise of a frame is drawn from its own codes, so that codes say how they
sound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_DILATIONS = (1, 3, 9)


@dataclass(frozen=True, kw_only=True)
class SnacConfig:
    """What config.json of a SNAC checkpoint says; the defaults are those of the 24 kHz model."""

    sampling_rate: int = 24000
    encoder_dim: int = 48
    encoder_rates: Sequence[int] = (2, 4, 8, 8)
    latent_dim: int | None = None
    decoder_dim: int = 1024
    decoder_rates: Sequence[int] = (8, 8, 4, 2)
    attn_window_size: int | None = None
    codebook_size: int = 4096
    codebook_dim: int = 8
    vq_strides: Sequence[int] = (4, 2, 1)
    noise: bool = True
    depthwise: bool = True

    @property
    def width(self) -> int:
        """Channels of the latent."""
        return self.latent_dim or self.encoder_dim * 2 ** len(self.encoder_rates)

    @property
    def frame(self) -> int:
        """Steps of the latent in a frame: those of one code of the slowest codebook."""
        return int(self.vq_strides[0])

    @property
    def hop(self) -> int:
        """Samples of one frame."""
        return self.frame * math.prod(self.encoder_rates)


class Snake(nn.Module):
    """x + sin(a x)^2 / a: Ziyin et al. (2020), arXiv 2006.08195."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)


class Residual(nn.Module):
    """Two activations and two convolutions, added to what came in."""

    def __init__(self, channels: int, dilation: int, groups: int) -> None:
        super().__init__()
        wide = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation, groups=groups)
        self.block = nn.Sequential(Snake(channels), wide, Snake(channels), nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        found: Tensor = x + self.block(x)
        return found


class Noise(nn.Module):
    """Noise as loud as a projection of the signal."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """``x [B, C, N]`` and ``noise [B, 1, N]``."""
        found: Tensor = x + noise * self.linear(x)
        return found


class Down(nn.Module):
    """Fewer steps, twice as many channels."""

    def __init__(self, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        units = [Residual(channels, dilation, groups) for dilation in _DILATIONS]
        narrow = nn.Conv1d(channels, 2 * channels, 2 * stride, stride=stride, padding=math.ceil(stride / 2))
        self.block = nn.Sequential(*units, Snake(channels), narrow)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, N]`` to ``[B, 2 C, N / stride]``."""
        found: Tensor = self.block(x)
        return found


class Up(nn.Module):
    """More steps, half as many channels, some noise."""

    def __init__(self, channels: int, out: int, stride: int, noise: bool, groups: int) -> None:
        super().__init__()
        pad, odd = math.ceil(stride / 2), stride % 2
        wide = nn.ConvTranspose1d(channels, out, 2 * stride, stride=stride, padding=pad, output_padding=odd)
        units = [Residual(out, dilation, groups) for dilation in _DILATIONS]
        self.block = nn.Sequential(Snake(channels), wide, *([Noise(out)] if noise else []), *units)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """``[B, C, N]`` to ``[B, out, N stride]``."""
        for layer in self.block:
            x = layer(x, noise) if isinstance(layer, Noise) else layer(x)
        return x


class Encoder(nn.Module):
    """Sound to latent."""

    def __init__(self, config: SnacConfig) -> None:
        super().__init__()
        width = config.encoder_dim
        layers: list[nn.Module] = [nn.Conv1d(1, width, 7, padding=3)]
        for stride in config.encoder_rates:
            layers.append(Down(width, stride, width if config.depthwise else 1))
            width *= 2
        layers.append(nn.Conv1d(width, width, 7, padding=3, groups=width if config.depthwise else 1))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 1, N]`` to ``[B, C, S]``."""
        found: Tensor = self.block(x)
        return found


class Decoder(nn.Module):
    """Latent to sound."""

    def __init__(self, config: SnacConfig) -> None:
        super().__init__()
        width, channels = config.width, config.decoder_dim
        if config.depthwise:
            first = [nn.Conv1d(width, width, 7, padding=3, groups=width), nn.Conv1d(width, channels, 1)]
        else:
            first = [nn.Conv1d(width, channels, 7, padding=3)]
        ups = []
        for stride in config.decoder_rates:
            groups = channels // 2 if config.depthwise else 1
            ups.append(Up(channels, channels // 2, stride, config.noise, groups))
            channels //= 2
        last = [Snake(channels), nn.Conv1d(channels, 1, 7, padding=3), nn.Tanh()]
        self.model = nn.Sequential(*first, *ups, *last)

    def forward(self, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """``[B, C, S]`` and the noise ``[B, 1, N]`` of every rate to ``[B, 1, N]``."""
        given = iter(noise)
        for layer in self.model:
            x = layer(x, next(given)) if isinstance(layer, Up) else layer(x)
        return x


class Quantizer(nn.Module):
    """One codebook: a code for every ``stride`` steps."""

    def __init__(self, config: SnacConfig, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.in_proj = nn.Conv1d(config.width, config.codebook_dim, 1)
        self.out_proj = nn.Conv1d(config.codebook_dim, config.width, 1)
        self.codebook = nn.Embedding(config.codebook_size, config.codebook_dim)

    def nearest(self, x: Tensor) -> Tensor:
        """Codes ``[B, S / stride]`` of what is left ``[B, C, S]``, by the angle."""
        seen = self.in_proj(F.avg_pool1d(x, self.stride, self.stride))
        likeness = F.normalize(self.codebook.weight) @ F.normalize(seen, dim=1)
        return likeness.argmax(1)

    def latent(self, codes: Tensor) -> Tensor:
        """What codes ``[B, S / stride]`` stand for ``[B, C, S]``."""
        found: Tensor = self.out_proj(self.codebook(codes).transpose(1, 2))
        return found.repeat_interleave(self.stride, dim=-1)


class Quantizers(nn.Module):
    """The codebooks, slowest first, each coding what those before it left."""

    def __init__(self, config: SnacConfig) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(Quantizer(config, stride) for stride in config.vq_strides)


class SnacModel(nn.Module):
    """Siuzdak et al. (2024), arXiv 2410.14411, without attention."""

    def __init__(self, config: SnacConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantizer = Quantizers(config)

    @property
    def codebooks(self) -> Sequence[Any]:
        """The codebooks, slowest first."""
        return list(self.quantizer.quantizers)

    def encode(self, values: Tensor) -> list[Tensor]:
        """``[1, 1, N]`` of whole frames to codes ``[S / stride]`` of each codebook."""
        left, found = self.encoder(values), []
        for book in self.codebooks:
            found.append(book.nearest(left))
            left = left - book.latent(found[-1])
        return [codes[0] for codes in found]

    def decode(self, codes: Sequence[Tensor], noise: Sequence[Tensor]) -> Tensor:
        """Codes ``[S / stride]`` of each codebook, and noise of each rate, to ``[1, 1, N]``."""
        parts = [book.latent(one[None]) for book, one in zip(self.codebooks, codes, strict=True)]
        found: Tensor = self.decoder(torch.stack(parts).sum(0), noise)
        return found


def folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint, weight normalisation (Salimans and Kingma 2016) folded into them."""
    found = {}
    for name, value in state.items():
        for scale, direction in (
            (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
            (".weight_g", ".weight_v"),
        ):
            if name.endswith(scale):
                stem = name.removesuffix(scale)
                found[f"{stem}.weight"] = torch._weight_norm(state[stem + direction], value, 0)
        if not name.endswith((".original0", ".original1", ".weight_g", ".weight_v")):
            found[name] = value
    return found
