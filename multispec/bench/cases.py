"""What is measured: a case, a request within it, one run of one system, and what a system is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from multispec.sampling import Sampling

PLAIN, AUTO = "multispec plain", "multispec auto"


def is_ours(name: str) -> bool:
    """Whether a system of that name is multispec in some way.

    >>> is_ours("multispec auto"), is_ours("transformers plain")
    (True, False)
    """
    return name.startswith("multispec ")


def is_fixed(name: str) -> bool:
    """Whether it is ours by one method, rather than plainly or as "auto" decides."""
    return is_ours(name) and name not in (PLAIN, AUTO)


@dataclass(frozen=True)
class Case:
    """Prompts of one stream, so many together, at a temperature (0 is greedy)."""

    stream: str
    temperature: float
    batch: int

    @property
    def label(self) -> str:
        """What tables call it.

        >>> Case("text", 0.8, 4).label
        'text, 0.8, batch 4'
        """
        heat = f"{self.temperature:g}" if self.temperature else "greedy"
        return f"{self.stream}, {heat}, batch {self.batch}"


@dataclass(frozen=True)
class Request:
    """One turn: prompts with a seed each, how many symbols at most, and the category of the first."""

    category: str
    prompts: tuple[Any, ...]
    sampling: tuple[Sampling, ...]
    new_tokens: int | None


@dataclass(frozen=True)
class Run:
    """One request as one system answered it; ``forward`` are the seconds inside models, None: not known."""

    seconds: float
    tokens: tuple[tuple[int, ...], ...]
    forward: float | None = None
    rounds: int = 0
    calls: int = 0
    why: tuple[str, ...] = ()

    @property
    def symbols(self) -> int:
        """All that was emitted."""
        return sum(map(len, self.tokens))

    @property
    def pace(self) -> float:
        """Seconds for a symbol."""
        return self.seconds / max(self.symbols, 1)

    @property
    def own_share(self) -> float | None:
        """The part of the time outside the models' forward passes."""
        return None if self.forward is None else max(1 - self.forward / self.seconds, 0.0)


@runtime_checkable
class System(Protocol):
    """Something that generates: ours in some way, or a peer."""

    @property
    def name(self) -> str:
        """What tables call it: who, then how."""
        ...

    def refuses(self, case: Case) -> str:
        """Why it takes no part in a case; "" where it does."""
        ...

    def run(self, request: Request) -> Run:
        """Answer a request, timed by the wall clock."""
        ...
