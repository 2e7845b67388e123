"""How far a decoder hears: the frames that one sample of a sound depends on, from its layers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from multispec.modalities.speech.family import SpeechCodec

# The reach of a decoder in which every frame changes all samples: attention or norms over the whole sound.
UNBOUNDED = sys.maxsize


@runtime_checkable
class Hears(Protocol):
    """A layer: the first and last of its inputs that its outputs ``first .. last`` depend on."""

    def inputs(self, first: int, last: int, /) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Looks:
    """Output o depends on inputs ``o - before .. o + behind``: a convolution, an attention window."""

    before: int
    behind: int

    def inputs(self, first: int, last: int, /) -> tuple[int, int]:
        """Wider on both sides."""
        return first - self.before, last + self.behind


@dataclass(frozen=True)
class Spreads:
    """A transposed convolution: ``kernel`` outputs from ``i stride - left`` on hear input i.

    >>> Spreads(stride=4, kernel=8, left=2).inputs(0, 3)
    (-1, 1)
    """

    stride: int
    kernel: int
    left: int = 0

    def inputs(self, first: int, last: int, /) -> tuple[int, int]:
        """Those whose outputs reach the interval."""
        return -((self.kernel - 1 - first - self.left) // self.stride), (last + self.left) // self.stride


def heard(layers: Sequence[Hears], hop: int) -> tuple[int, int]:
    """The frames before and behind a frame that its ``hop`` samples depend on, through ``layers`` in order.

    >>> heard([Looks(1, 1), Spreads(stride=4, kernel=8, left=2)], 4)
    (2, 2)
    """
    first, last = 0, hop - 1
    for layer in reversed(layers):
        first, last = layer.inputs(first, last)
    return max(-first, 0), max(last, 0)


def padded_layers(decoder: nn.Module) -> list[Hears]:
    """The layers of a decoder of torch's own convolutions, registered in the order in which they run."""
    return list(_padded(decoder))


def _padded(decoder: nn.Module) -> Iterator[Hears]:
    for module in decoder.modules():
        if isinstance(module, nn.Conv1d):
            span = (module.kernel_size[0] - 1) * module.dilation[0]
            left = int(module.padding[0])
            yield Looks(left, span - left)
        elif isinstance(module, nn.ConvTranspose1d):
            yield Spreads(module.stride[0], module.kernel_size[0], int(module.padding[0]))


def trimmed_layers(decoder: nn.Module) -> list[Hears]:
    """The layers of a SEANet decoder (EnCodec, Mimi), which pads and trims around its convolutions."""
    return [
        _trimmed(module)
        for module in decoder.modules()
        if isinstance(getattr(module, "conv", None), nn.Module)
    ]


def _trimmed(module: Any) -> Hears:
    conv = module.conv
    if isinstance(conv, nn.ConvTranspose1d):
        total = conv.kernel_size[0] - conv.stride[0]
        right = -int(-total * module.trim_right_ratio // 1) if module.causal else total // 2
        return Spreads(conv.stride[0], conv.kernel_size[0], total - right)
    total = (conv.kernel_size[0] - 1) * conv.dilation[0]
    right = 0 if module.causal else total // 2
    return Looks(total - right, right)


@torch.inference_mode()
def measured(codec: SpeechCodec, tolerance: float, *, frames: int = 64, seed: int = 0) -> tuple[int, int]:
    """The frames before and behind a frame that change its samples by more than ``tolerance``, as measured.

    One frame of ``frames`` random ones is replaced by another; ``tolerance`` is relative to the loudest
    sample. A distance as large as what there is to look at is a lower bound.
    """
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(codec.cardinality, (2, frames, codec.num_codebooks), generator=draw)
    middle, changed = frames // 2, codes[0].clone()
    changed[middle] = codes[1, middle]
    plain, other = codec.decode(codes[0]), codec.decode(changed)
    far = _by_frame((plain - other).abs(), frames) > tolerance * float(plain.abs().max())
    touched = far.nonzero()[:, 0].tolist() or [middle]
    # Frame f hears the changed one behind it where f lies before that, and the other way round.
    return max(touched[-1] - middle, 0), max(middle - touched[0], 0)


def _by_frame(difference: Tensor, frames: int) -> Tensor:
    return difference.reshape(len(difference), frames, -1).amax((0, 2))
