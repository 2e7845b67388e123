"""Noise of a drafter inside a drafter: draws of its own, apart from those of whoever asked it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from jaxtyping import Bool, Float, Int
from torch import Tensor

from multispec.sampling import Law, Noise, Purpose


@dataclass(frozen=True)
class Salted:
    """The same noise with other keys: draws with another ``salt``, or with none, are independent of these.

    What is shared with the target, ``symbols`` and ``perturbed``, stays shared.
    """

    noise: Noise
    salt: int

    def _key(self, key: int) -> int:
        # Keys nest, so they are hashed in place of being added up.
        return int.from_bytes(blake2b(f"{self.salt} {key}".encode(), digest_size=7).digest(), "big")

    def symbols(self, law: Law, positions: Sequence[int]) -> Int[Tensor, " n"]:
        """The target's own symbols."""
        return self.noise.symbols(law, positions)

    def perturbed(self, law: Law, positions: Sequence[int]) -> Float[Tensor, "n V"]:
        """The target's own log p + G."""
        return self.noise.perturbed(law, positions)

    def choose(
        self, probs: Float[Tensor, "n V"], positions: Sequence[int], purpose: Purpose, key: int = 0
    ) -> Int[Tensor, " n"]:
        """One symbol per row."""
        return self.noise.choose(probs, positions, purpose, self._key(key))

    def accepts(
        self, p: Float[Tensor, " n"], q: Float[Tensor, " n"], positions: Sequence[int], key: int = 0
    ) -> Bool[Tensor, " n"]:
        """Bernoulli(min(1, p / q)) per row."""
        return self.noise.accepts(p, q, positions, self._key(key))
