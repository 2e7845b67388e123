"""Tiny random VQGANs under the published names, and their arithmetic written out over those names."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = (32, 64)
LATENT = 8


class _Random:
    """Random weights of every kind of layer."""

    def __init__(self, seed: int) -> None:
        self._made = torch.Generator().manual_seed(seed)

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._made)

    def conv(self, name: str, inside: int, outside: int, kernel: int = 3) -> dict[str, Tensor]:
        weight = self.tensor(outside, inside, kernel, kernel) / (inside * kernel**2) ** 0.5
        return {f"{name}.weight": weight, f"{name}.bias": self.tensor(outside) * 0.1}

    def norm(self, name: str, size: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + self.tensor(size) * 0.1, f"{name}.bias": self.tensor(size) * 0.1}

    def block(self, name: str, inside: int, outside: int) -> dict[str, Tensor]:
        found = self.norm(f"{name}.norm1", inside) | self.conv(f"{name}.conv1", inside, outside)
        found |= self.norm(f"{name}.norm2", outside) | self.conv(f"{name}.conv2", outside, outside)
        return found if inside == outside else found | self.conv(f"{name}.nin_shortcut", inside, outside, 1)

    def attention(self, name: str, size: int) -> dict[str, Tensor]:
        found = self.norm(f"{name}.norm", size)
        for part in ("q", "k", "v", "proj_out"):
            found |= self.conv(f"{name}.{part}", size, size, 1)
        return found

    def middle(self, half: str) -> dict[str, Tensor]:
        last = CHANNELS[-1]
        found = self.block(f"{half}.mid.block_1", last, last) | self.attention(f"{half}.mid.attn_1", last)
        return found | self.block(f"{half}.mid.block_2", last, last)

    def decoder(self, channels: int) -> dict[str, Tensor]:
        fine, coarse = CHANNELS
        found = self.conv("post_quant_conv", channels, LATENT, 1) | self.middle("decoder")
        found |= self.conv("decoder.conv_in", LATENT, coarse)
        for number in range(3):
            found |= self.block(f"decoder.up.1.block.{number}", coarse, coarse)
            found |= self.attention(f"decoder.up.1.attn.{number}", coarse)
            found |= self.block(f"decoder.up.0.block.{number}", coarse if number == 0 else fine, fine)
        found |= self.conv("decoder.up.1.upsample.conv", coarse, coarse)
        return found | self.norm("decoder.norm_out", fine) | self.conv("decoder.conv_out", fine, 3)

    def encoder(self, channels: int) -> dict[str, Tensor]:
        fine, coarse = CHANNELS
        found = self.conv("quant_conv", LATENT, channels, 1) | self.middle("encoder")
        found |= self.conv("encoder.conv_in", 3, fine)
        for number in range(2):
            found |= self.block(f"encoder.down.0.block.{number}", fine, fine)
            found |= self.block(f"encoder.down.1.block.{number}", fine if number == 0 else coarse, coarse)
            found |= self.attention(f"encoder.down.1.attn.{number}", coarse)
        found |= self.conv("encoder.down.0.downsample.conv", fine, fine)
        return found | self.norm("encoder.norm_out", coarse) | self.conv("encoder.conv_out", coarse, LATENT)


def state(codes: int = 16, channels: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Two resolutions with two blocks (three on the way back), under the names of taming-transformers."""
    made = _Random(seed)
    codebook = {"quantize.embedding.weight": made.tensor(codes, channels)}
    return codebook | made.decoder(channels) | made.encoder(channels)


def llamagen_names(taming: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of LlamaGen's tokenizer, with the buffer that it counts usage in."""
    found = {}
    for name, value in taming.items():
        new = name.replace(".mid.block_1.", ".mid.0.").replace(".mid.attn_1.", ".mid.1.")
        new = new.replace(".mid.block_2.", ".mid.2.").replace("encoder.down.", "encoder.conv_blocks.")
        # LlamaGen numbers the levels of a decoder in the order they are run.
        new = re.sub(r"^decoder\.up\.(\d)", lambda level: f"decoder.conv_blocks.{1 - int(level[1])}", new)
        found[re.sub(r"(conv_blocks\.\d)\.block\.", r"\1.res.", new)] = value.clone()
    return found | {"quantize.codebook_used": torch.zeros(8)}


def decoded(taming: dict[str, Tensor], codes: Tensor, normalised: bool) -> Tensor:
    """Pixels ``[3, height, width]`` in [-1, 1] of a grid of codes, by the names above."""
    codebook = taming["quantize.embedding.weight"]
    codebook = F.normalize(codebook, dim=-1) if normalised else codebook
    x = codebook[codes].permute(2, 0, 1)[None]
    x = _conv(taming, "decoder.conv_in", _conv(taming, "post_quant_conv", x))
    x = _block(taming, "decoder.mid.block_1", x)
    x = _block(taming, "decoder.mid.block_2", _attention(taming, "decoder.mid.attn_1", x))
    for number in range(3):
        x = _block(taming, f"decoder.up.1.block.{number}", x)
        x = _attention(taming, f"decoder.up.1.attn.{number}", x)
    x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    x = _conv(taming, "decoder.up.1.upsample.conv", x)
    for number in range(3):
        x = _block(taming, f"decoder.up.0.block.{number}", x)
    return _conv(taming, "decoder.conv_out", _active(taming, "decoder.norm_out", x))[0]


def _conv(taming: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = taming[f"{name}.weight"]
    return F.conv2d(x, weight, taming[f"{name}.bias"], padding=weight.shape[-1] // 2)


def _normed(taming: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, taming[f"{name}.weight"], taming[f"{name}.bias"], 1e-6)


def _active(taming: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    normed = _normed(taming, name, x)
    return normed * normed.sigmoid()


def _block(taming: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    inner = _conv(taming, f"{name}.conv1", _active(taming, f"{name}.norm1", x))
    inner = _conv(taming, f"{name}.conv2", _active(taming, f"{name}.norm2", inner))
    short = f"{name}.nin_shortcut"
    return inner + (_conv(taming, short, x) if f"{short}.weight" in taming else x)


def _attention(taming: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    q, k, v = (
        _conv(taming, f"{name}.{part}", _normed(taming, f"{name}.norm", x)).flatten(2) for part in "qkv"
    )
    law = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
    mixed = (v @ law.transpose(1, 2)).unflatten(-1, x.shape[2:])
    return x + _conv(taming, f"{name}.proj_out", mixed)
