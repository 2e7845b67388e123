"""From processed scores to symbols: the settings, the law p, and counter-based noise.

This is the only module that touches randomness. Noise is a stateless hash of (seed, sample number,
position, slot, symbol, purpose): no generator advances, so a draw never depends on how many symbols
were drafted, on the batch, or on the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property, lru_cache
from numbers import Integral, Real
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multispec.errors import SamplingError

MAX_SEED = 2**63 - 1
# Above this many symbols, noise is hashed only where p > 0 (after top-k or top-p that is little).
DENSE_VOCABULARY = 32_768
# Positions that are hashed at once: enough for two threads to share the logarithms.
_BLOCK = 16
# Up to so many single draws are hashed one by one.
_FEW = 8


def _require(holds: bool, rule: str, got: object, todo: str) -> None:
    if not holds:
        raise SamplingError(f"{rule}: got {got!r}. {todo}")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How symbols are drawn; temperature 0 is greedy.

    The order is transformers' own: bias and penalties, bans, foreign processors, temperature,
    top-k, top-p, min-p, typical-p. ``repetition_penalty`` looks at prompt and output,
    ``presence_penalty`` and ``frequency_penalty`` at the output. ``sample`` numbers several
    answers to one seed.

    Raises:
        SamplingError: a value outside its range.

    >>> Sampling(temperature=0.8, top_p=0.95, seed=7).greedy
    False
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: Sequence[Sequence[int]] = ()
    allowed_ids: Sequence[int] | None = None
    min_new_tokens: int = 0
    seed: int = 0
    sample: int = 0

    def __post_init__(self) -> None:
        for name in ("top_k", "min_new_tokens", "seed", "sample"):
            value = getattr(self, name)
            _require(isinstance(value, Integral), f"{name} must be a whole number", value, "")
        for name in ("temperature", "top_p", "min_p", "typical_p"):
            value = getattr(self, name)
            _require(isinstance(value, Real), f"{name} must be a number", value, "")
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            finite = isinstance(value, Real) and math.isfinite(value)
            _require(finite, f"{name} must be a finite number", value, "")
        number = self.temperature
        _require(0 <= number < float("inf"), "temperature must be >= 0", number, "0 is greedy.")
        _require(self.top_k >= 0, "top_k must be >= 0", self.top_k, "Use 0 to switch it off.")
        _require(0 < self.top_p <= 1, "top_p must lie in (0, 1]", self.top_p, "1 is off.")
        _require(0 <= self.min_p <= 1, "min_p must lie in [0, 1]", self.min_p, "0 is off.")
        _require(0 < self.typical_p <= 1, "typical_p must lie in (0, 1]", self.typical_p, "1 is off.")
        penalty = self.repetition_penalty
        _require(penalty > 0, "repetition_penalty must be > 0", penalty, "1 is off.")
        _require(0 <= self.seed <= MAX_SEED, "seed must lie in [0, 2**63)", self.seed, "Reduce it.")
        _require(0 <= self.sample < 2**31, "sample must lie in [0, 2**31)", self.sample, "Reduce it.")
        _require(self.min_new_tokens >= 0, "min_new_tokens must be >= 0", self.min_new_tokens, "")
        _require(all(len(word) for word in self.bad_words), "a bad word needs ids", [], "Drop it.")
        empty = self.allowed_ids is not None and not len(self.allowed_ids)
        _require(not empty, "allowed_ids must leave a symbol", (), "Use None to allow all.")

    @property
    def greedy(self) -> bool:
        """True when p is one-hot at the best symbol."""
        return self.temperature == 0


def best(scores: Float[Tensor, "n V"]) -> Int[Tensor, " n"]:
    """argmax of each row; the first of equals."""
    if scores.device.type == "cpu":
        # The same answer from numpy, which takes an eighth of the time on a few rows.
        return torch.from_numpy(scores.numpy().argmax(-1))
    return scores.argmax(-1)


class Law:
    """The law of the next symbol at ``n`` places: processed ``scores [n, V]``, -inf where p is 0.

    Greedy decoding is the one-hot law, in every rule; no softmax is taken at temperature 0.
    """

    def __init__(self, scores: Float[Tensor, "n V"], *, greedy: bool) -> None:
        self.scores = scores
        self.greedy = greedy

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, place: int) -> Law:
        """The law at one place."""
        return Law(self.scores[place : place + 1], greedy=self.greedy)

    @cached_property
    def mode(self) -> Int[Tensor, " n"]:
        """The most probable symbol; the first of equals."""
        return best(self.scores)

    @cached_property
    def probs(self) -> Float[Tensor, "n V"]:
        """p in float64, exactly one-hot when greedy."""
        if self.greedy:
            flat = torch.zeros_like(self.scores, dtype=torch.float64)
            return flat.scatter_(-1, self.mode[:, None], 1.0)
        return self.scores.to(torch.float64).softmax(-1)

    @property
    def log_probs(self) -> Float[Tensor, "n V"]:
        """log p, -inf where p is 0."""
        return self.probs.log() if self.greedy else self.scores.log_softmax(-1)

    def finite_at(self, places: Sequence[int], symbols: Sequence[int]) -> list[bool]:
        """Which of these scores are finite; where argmax is not finite, nothing can be drawn."""
        scores = self.scores.numpy() if self.scores.device.type == "cpu" else self.scores
        return [math.isfinite(scores[pair]) for pair in zip(places, symbols, strict=True)]

    def invalid_places(self, among: Sequence[int] | None = None) -> list[int]:
        """Places (``among`` these) where no symbol can be drawn: NaN, +inf, or -inf everywhere."""
        places = range(len(self)) if among is None else among
        scores = self.scores if among is None else self.scores[list(among)]
        tops = zip(places, scores.amax(-1).tolist(), strict=True)
        return [place for place, top in tops if not math.isfinite(top)]


class Purpose(IntEnum):
    """What a draw is for; each purpose has independent noise."""

    SYMBOL = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


@runtime_checkable
class Noise(Protocol):
    """The three draws that the core makes. A position is counted from the first generated symbol."""

    def symbols(self, law: Law, positions: Sequence[int]) -> Int[Tensor, " n"]:
        """The symbol that plain sampling emits at each position: shared by draft and target."""
        ...

    def perturbed(self, law: Law, positions: Sequence[int]) -> Float[Tensor, "n V"]:
        """log p + G, whose argmax is ``symbols`` and whose top k are k draws without replacement."""
        ...

    def choose(
        self, probs: Float[Tensor, "n V"], positions: Sequence[int], purpose: Purpose, key: int = 0
    ) -> Int[Tensor, " n"]:
        """One symbol per row of (unnormalised) ``probs``, from noise of its own."""
        ...

    def accepts(
        self, p: Float[Tensor, " n"], q: Float[Tensor, " n"], positions: Sequence[int], key: int = 0
    ) -> Bool[Tensor, " n"]:
        """Bernoulli(min(1, p / q)) per row, without dividing."""
        ...


_MASK = 2**64 - 1


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _mix(value: int) -> int:
    # A 64-bit finaliser: xor-shifts and odd multipliers, so that every input bit reaches every
    # output bit.
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix_(value: Tensor) -> Tensor:
    # The same finaliser on int64, in place: torch shifts arithmetically, so the copies of the sign
    # are masked.
    spare = torch.empty_like(value)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        torch.bitwise_right_shift(value, shift, out=spare)
        value.bitwise_xor_(spare.bitwise_and_(2 ** (64 - shift) - 1))
        if factor != 1:
            value.mul_(_signed(factor))
    return value


@lru_cache(maxsize=8)
def _symbol_codes(size: int, device: torch.device) -> Tensor:
    ids = torch.arange(1, size + 1, dtype=torch.int64, device=device)
    return _mix_(ids * _signed(0x9E3779B97F4A7C15))


def _uniform(bits: Tensor) -> Tensor:
    # 52 random bits and a half: strictly inside (0, 1), every value exact in float64.
    kept = bits.bitwise_right_shift_(12).bitwise_and_(2**52 - 1)
    return kept.to(torch.float64).add_(0.5).mul_(2.0**-52)


def _rows(table: Tensor, places: Sequence[int]) -> Tensor:
    first, count = places[0], len(places)
    if places == [*range(first, first + count)]:
        return table[first : first + count]
    return table[torch.tensor(places, device=table.device)]


@dataclass(frozen=True)
class CounterNoise:
    """Noise as a pure function of (seed, sample, position, slot, symbol, purpose).

    ``round_start`` (the position at which a round begins) also enters the noise of ``rejection``:
    a symbol that is drafted again after a rejection gets a fresh draw, so no rule ever sees a draw
    twice.
    """

    seed: int
    sample: int = 0
    slots: int = 1
    _table: dict[object, dict[int, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def keys(self, positions: Sequence[int], purpose: Purpose, extra: int = 0) -> list[int]:
        """One 64-bit key per position."""
        base = _mix(_mix(self.seed + 0x9E3779B97F4A7C15) + self.sample * 8 + purpose)
        base = _mix((base + extra * 0xD1342543DE82EF95) & _MASK)
        frames = (divmod(position, self.slots) for position in positions)
        return [
            _signed(_mix((base + frame * 0x9E3779B97F4A7C15 + slot * 0xA24BAED4963EE407) & _MASK))
            for frame, slot in frames
        ]

    def uniforms(
        self,
        positions: Sequence[int],
        purpose: Purpose,
        extra: int = 0,
        device: torch.device | None = None,
    ) -> Float[Tensor, " n"]:
        """One float64 uniform in the open interval (0, 1) per position."""
        keys = self.keys(positions, purpose, extra)
        if len(keys) <= _FEW:
            # The same numbers without a dozen small operations on tensors.
            found = [((_mix(key & _MASK) >> 12) + 0.5) * 2.0**-52 for key in keys]
            return torch.tensor(found, dtype=torch.float64, device=device)
        return _uniform(_mix_(torch.tensor(keys, dtype=torch.int64, device=device)))

    def gumbel(
        self,
        positions: Sequence[int],
        vocab_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float64,
    ) -> Float[Tensor, "n V"]:
        """Standard Gumbel noise of every symbol at each position."""
        return self._gumbel(positions, _symbol_codes(vocab_size, device), dtype)

    def _gumbel(self, positions: Sequence[int], codes: Tensor, dtype: torch.dtype) -> Tensor:
        keys = torch.tensor(self.keys(positions, Purpose.SYMBOL), device=codes.device)
        uniform = _uniform(_mix_(keys[:, None] ^ codes))
        # The first logarithm needs float64, where u is next to 1; the second one does not.
        return uniform.log_().neg_().to(dtype).log_().neg_()

    def _dense(self, positions: Sequence[int], scores: Tensor) -> Tensor:
        """Noise of every symbol, in the dtype of ``scores``."""
        # Draft, target and the next round ask for the same positions: hash each block of them once.
        first, last = min(positions) // _BLOCK, max(positions) // _BLOCK
        kind = (scores.shape[-1], scores.dtype, scores.device)
        table = self._table.setdefault(kind, {})
        for block in [old for old in table if old < first]:
            del table[block]
        for block in range(first, last + 1):
            if block not in table:
                span = range(block * _BLOCK, (block + 1) * _BLOCK)
                table[block] = self.gumbel(span, kind[0], scores.device, scores.dtype)
        if first == last:
            return _rows(table[first], [position - first * _BLOCK for position in positions])
        rows = torch.cat([table[block] for block in range(first, last + 1)])
        return _rows(rows, [position - first * _BLOCK for position in positions])

    def perturbed(self, law: Law, positions: Sequence[int]) -> Float[Tensor, "n V"]:
        """log p + G up to a constant per row; -inf where p is 0."""
        scores = law.scores
        size = scores.shape[-1]
        if size <= DENSE_VOCABULARY:
            return scores + self._dense(positions, scores)
        return self._on_support(scores, positions)

    def _on_support(self, scores: Tensor, positions: Sequence[int]) -> Tensor:
        finite = scores > -torch.inf
        width = int(finite.sum(-1).max())
        if width > scores.shape[-1] // 4:
            return scores + self.gumbel(positions, scores.shape[-1], scores.device, scores.dtype)
        best, ids = scores.topk(width, dim=-1)
        noise = self._gumbel(positions, _symbol_codes(scores.shape[-1], scores.device)[ids], scores.dtype)
        full = torch.full_like(scores, -torch.inf)
        return full.scatter_(-1, ids, best + noise)

    def symbols(self, law: Law, positions: Sequence[int]) -> Int[Tensor, " n"]:
        """argmax(log p + G): the same symbol for the same seed, whatever was drafted."""
        if law.greedy:
            return law.mode
        if law.scores.device.type == "cpu" and law.scores.shape[-1] <= DENSE_VOCABULARY:
            # What ``perturbed`` gives, with less between the sum and its argmax.
            noise = self._dense(positions, law.scores).numpy()
            return torch.from_numpy((law.scores.numpy() + noise).argmax(-1))
        return best(self.perturbed(law, positions))

    def choose(
        self, probs: Float[Tensor, "n V"], positions: Sequence[int], purpose: Purpose, key: int = 0
    ) -> Int[Tensor, " n"]:
        """Inverse of the distribution function at one uniform per row; never a symbol with p = 0."""
        cdf = probs.to(torch.float64).cumsum(-1)
        total = cdf[:, -1:].contiguous()
        point = self.uniforms(positions, purpose, key, probs.device)[:, None] * total
        found = torch.searchsorted(cdf, point, right=True)
        # Rounding may carry the point to the total: the last symbol with mass is where that is
        # reached.
        return torch.minimum(found, torch.searchsorted(cdf, total))[:, 0]

    def accepts(
        self, p: Float[Tensor, " n"], q: Float[Tensor, " n"], positions: Sequence[int], key: int = 0
    ) -> Bool[Tensor, " n"]:
        """u q < p, so p = 0 never passes and p >= q always does."""
        return self.uniforms(positions, Purpose.ACCEPT, key, p.device) * q < p
