"""The table of all methods, made from their own declarations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from multispec.drafters import SJD, DraftModel, Jacobi, PromptLookup, RowCopy, ScdMaximal, SjdPac, ZipAR
from multispec.errors import UnknownNameError
from multispec.policies import Confidence, FixedLength, Heuristic, Off
from multispec.verifiers import (
    GSD,
    BudgetedRejection,
    CoolSD,
    Coupled,
    Lantern,
    LanternPlusPlus,
    Rejection,
    ZipARVerifier,
)

Kind = Literal["drafter", "verifier", "policy"]
STREAMS = ("text", "image", "speech")
# Methods that need what some streams do not have: rows that lie above each other, a codebook.
_ONLY: Mapping[type, tuple[str, ...]] = {
    ZipAR: ("image",),
    ZipARVerifier: ("image",),
    GSD: ("image", "speech"),
    Lantern: ("image", "speech"),
    LanternPlusPlus: ("image", "speech"),
}
_DRAFTERS: tuple[Any, ...] = (DraftModel, PromptLookup, Jacobi, SJD, ScdMaximal, SjdPac, RowCopy, ZipAR)
_VERIFIERS: tuple[Any, ...] = (
    Coupled,
    Rejection,
    BudgetedRejection,
    CoolSD,
    GSD,
    Lantern,
    LanternPlusPlus,
    ZipARVerifier,
)
_POLICIES: tuple[Any, ...] = (FixedLength, Confidence, Heuristic, Off)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method: its name, what it promises, what it needs, where it is published.

    ``exactness`` is the verifier's promise; drafters and policies never change what a verifier
    promises, so theirs is "any".
    """

    name: str
    kind: Kind
    exactness: str
    trained: bool
    streams: tuple[str, ...]
    paper: str
    summary: str
    method: type

    def to_dict(self) -> dict[str, Any]:
        """All but the class, ready for JSON."""
        names = ("name", "kind", "exactness", "trained", "streams", "paper", "summary")
        return {name: getattr(self, name) for name in names}


def _entry(method: Any, kind: Kind) -> Entry:
    return Entry(
        name=method.name,
        kind=kind,
        exactness=method.exactness if kind == "verifier" else "any",
        trained=bool(method.trained) if kind == "drafter" else False,
        streams=_ONLY.get(method, STREAMS),
        paper=method.paper,
        summary=(method.__doc__ or "").strip().splitlines()[0],
        method=method,
    )


def catalog() -> tuple[Entry, ...]:
    """Every drafter, verifier and policy.

    >>> [entry.name for entry in catalog() if entry.exactness in ("seed", "law")]
    ['coupled', 'rejection']
    """
    groups: Mapping[Kind, tuple[Any, ...]] = {
        "drafter": _DRAFTERS,
        "verifier": _VERIFIERS,
        "policy": _POLICIES,
    }
    return tuple(_entry(method, kind) for kind, methods in groups.items() for method in methods)


def find(kind: Kind, name: str, extra: tuple[str, ...] = ()) -> Entry:
    """The entry of that kind and name.

    Raises:
        UnknownNameError: no such method; names the nearest (among ``extra`` too).
    """
    known = {entry.name: entry for entry in catalog() if entry.kind == kind}
    if name not in known:
        raise UnknownNameError(kind, name, [*known, *extra])
    return known[name]
