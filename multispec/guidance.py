"""Classifier-free guidance: how the logits of two branches become one, by the conventions in use.

Guidance comes before every other rule: p is formed from the mixed logits. Both branches hold the
same generated symbols, behind different prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.errors import SamplingError

Convention = Literal["linear", "log_softmax", "extrapolate", "masked"]
Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022) with conditional logits c, unconditional u, scale s.

    ============== ========================================== =======================
    convention     mixed logits                               used by
    ============== ========================================== =======================
    ``linear``      u + s (c - u)                             MusicGen, Janus, LlamaGen
    ``log_softmax`` the same, on log-probabilities            Emu3, transformers' text
    ``extrapolate`` c + s (c - u), that is (1 + s) c - s u     VAR
    ``masked``      c where c + s (c - u) is in its top k     Dia
    ============== ========================================== =======================

    Guided are the positions ``start <= position < stop`` (LlamaGen's interval), counted from the
    first generated symbol; elsewhere p is conditional. A ``linear`` or ``cosine`` schedule lets the
    scale grow from neutral at position 0 to ``scale`` at the last of ``length`` positions.

    Raises:
        SamplingError: a scale below 0, an unknown convention or schedule, a setting that is missing.

    >>> Guidance(scale=3.0).neutral
    False
    """

    scale: float = 1.0
    convention: str = "linear"
    schedule: str = "constant"
    start: int = 0
    stop: int | None = None
    length: int | None = None
    top_k: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.scale, (int, float)) and math.isfinite(self.scale)
        if not number or self.scale < 0:
            raise SamplingError(
                f"A guidance scale must be a finite number >= 0: got {self.scale!r}. "
                f"{self._neutral_scale:g} is no guidance."
            )
        for name, kinds in (("convention", Convention), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise SamplingError(f"Unknown guidance {name} {getattr(self, name)!r}. Known: {known}.")
        if self.schedule != "constant" and (self.length is None or self.length < 1):
            raise SamplingError(
                f"The {self.schedule!r} guidance schedule needs the length of the stream: got {self.length}. "
                "Pass length=..., the number of symbols over which the scale grows."
            )
        if self.convention == "masked" and self.top_k < 1:
            raise SamplingError(f"Guidance by a mask needs top_k >= 1: got {self.top_k}. Dia uses 45.")
        if self.start < 0 or (self.stop is not None and self.stop < self.start):
            raise SamplingError(
                f"Guidance needs 0 <= start <= stop: got start {self.start}, stop {self.stop}. "
                "Positions count from the first generated symbol."
            )

    @property
    def _neutral_scale(self) -> float:
        return 1.0 if self.convention in ("linear", "log_softmax") else 0.0

    @property
    def neutral(self) -> bool:
        """True where the mixed logits are the conditional ones, so that one branch is enough."""
        empty = self.stop is not None and self.stop <= self.start
        return empty or (self.scale == self._neutral_scale and self.convention != "masked")

    def scale_at(self, position: int) -> float:
        """The scale at a position: neutral outside the interval, grown by the schedule inside."""
        if position < self.start or (self.stop is not None and position >= self.stop):
            return self._neutral_scale
        return self._neutral_scale + self._grown(position) * (self.scale - self._neutral_scale)

    def _grown(self, position: int) -> float:
        if self.schedule == "constant" or self.length is None:
            return 1.0
        share = min(position / max(self.length - 1, 1), 1.0)
        return share if self.schedule == "linear" else (1 - math.cos(math.pi * share)) / 2

    def mix(
        self, c: Float[Tensor, "n V"], u: Float[Tensor, "n V"], positions: Sequence[int]
    ) -> Float[Tensor, "n V"]:
        """The guided logits at ``positions``; outside the interval exactly the conditional ones."""
        scales = [self.scale_at(position) for position in positions]
        wide = torch.promote_types(c.dtype, torch.float32)
        c, u = c.to(wide), u.to(wide)
        s = torch.tensor(scales, dtype=wide, device=c.device)[:, None]
        neutral = torch.tensor([not self._guides(p) for p in positions], device=c.device)[:, None]
        return torch.where(neutral, c, self._mixed(c, u, s))

    def _guides(self, position: int) -> bool:
        inside = self.start <= position and (self.stop is None or position < self.stop)
        return inside and (self.convention == "masked" or self.scale_at(position) != self._neutral_scale)

    def _mixed(self, c: Tensor, u: Tensor, s: Tensor) -> Tensor:
        if self.convention == "linear":
            return u + s * (c - u)
        if self.convention == "log_softmax":
            c, u = c.log_softmax(-1), u.log_softmax(-1)
            # -inf in both branches (a banned symbol) stays -inf instead of becoming NaN.
            return torch.where(c == -torch.inf, c, u + s * (c - u))
        extrapolated = c + s * (c - u)
        if self.convention == "extrapolate":
            return extrapolated
        kth = extrapolated.topk(min(self.top_k, c.shape[-1])).values[:, -1:]
        return c.masked_fill(extrapolated < kth, -torch.inf)
