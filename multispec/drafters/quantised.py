"""The target drafts with its weights in fewer bits, on the keys and values of its full ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from multispec.drafters.self_draft import Itself, SelfDraftSession
from multispec.drafters.skip_layers import check_length
from multispec.errors import UnknownNameError, UnsupportedError, UsageError
from multispec.protocols import Context, DraftSession
from multispec.targets.fast import int8, int8_kernels
from multispec.targets.views import Linear

BITS = ("int8", "int4")
_GROUPS = (32, 64, 128, 256)


@dataclass(frozen=True)
class Quantised:
    """Draft with the target's own weights in ``bits``, in the target's key/value cache.

    Zhao et al. (2024), QSpec, section 3: draft with quantised weights and activations, verify with the full
    ones, one cache of keys and values for both, which verification writes over. ``int8`` is dynamic
    quantisation: a scale per output of the weights, activations to 8 bits as they come. ``int4`` is 4-bit
    weights with a scale and an offset per ``group`` inputs and bfloat16 activations, the place of ML-SpecQD's
    (Georganas et al. 2025) MXFP4 drafts: groups of 32, whole numbers in place of E2M1 floats. Linear maps
    whose shape the kernels do not take stay as they are. Weights are quantised once per target, to
    nearest, and kept beside the full ones.

    Raises:
        UsageError: nothing to draft, bits or a group that no kernel has.
    """

    name: ClassVar[str] = "quantised"
    paper: ClassVar[str] = "Zhao et al. 2024 (QSpec), arXiv 2410.11305"
    trained: ClassVar[bool] = False
    bits: str = "int8"
    group: int = 32
    num_draft_tokens: int = 5

    def __post_init__(self) -> None:
        check_length(self.num_draft_tokens)
        if self.bits not in BITS:
            raise UnknownNameError("bits", self.bits, BITS)
        if self.group not in _GROUPS:
            raise UsageError(f"group must be one of {_GROUPS}, which the kernels take: got {self.group}.")

    def begin(self, context: Context) -> DraftSession:
        """Quantise the target, where that was not done yet.

        Raises:
            UnsupportedError: a device without these kernels.
        """
        itself = Itself(context, self.name)
        device = itself.target.device.type
        if device != "cpu" or not _available(self.bits):
            raise UnsupportedError(
                f"quantised has {self.bits} kernels on a CPU whose torch is built with them: got {device}, "
                f"with engines {torch.backends.quantized.supported_engines}. Use skip_layers, early_exit or "
                "draft_model."
            )
        lighter = itself.forward.with_linear(_Maker(self.bits, self.group))
        return SelfDraftSession(itself, self.num_draft_tokens, lambda _: 0, lambda _: lighter)


@dataclass(frozen=True)
class _Maker:
    """Linear maps in fewer bits: two that do the same are equal, so that a target is quantised once."""

    bits: str
    group: int

    def __call__(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """A linear map of a weight ``[out, in]``."""
        out, inputs = weight.shape
        if self.bits == "int4":
            whole = inputs % self.group == 0 and out % 16 == 0
            return _int4(weight, bias, self.group) if whole else partial(F.linear, weight=weight, bias=bias)
        return int8(weight, bias, together=True)


def _available(bits: str) -> bool:
    if bits == "int8":
        return int8_kernels()
    return "_weight_int4pack_mm_for_cpu" in dir(torch.ops.aten)


def _int4(weight: Tensor, bias: Tensor | None, group: int) -> Linear:
    """Weights to 0 .. 15 between the least and the largest of every group."""
    w = weight.detach().float().unflatten(1, (-1, group))
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    scale = (high - low).clamp(min=1e-8) / 15
    whole = ((w - low) / scale).round().clamp(0, 15).to(torch.int32).flatten(1)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 2)
    # The kernel's zero point stands at 8.
    both = torch.cat([scale, low + 8 * scale], -1).transpose(0, 1).contiguous().to(torch.bfloat16)
    run: Any = torch.ops.aten._weight_int4pack_mm_for_cpu

    def linear(x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).to(torch.bfloat16)
        out: Tensor = run(rows, packed, group, both).to(x.dtype).unflatten(0, x.shape[:-1])
        return out if bias is None else out + bias

    return linear
