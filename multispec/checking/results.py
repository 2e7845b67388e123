"""What a check found, and how it becomes one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from multispec.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One row: what was compared, in how many cases, whether it holds.

    ``skipped`` says that it was not tried; ``detail`` says why, or where it broke.
    """

    name: str
    compared: str
    cases: int
    ok: bool
    detail: str = ""
    skipped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@dataclass
class Finding:
    """What a check sees while it runs: cases, and what is wrong, the first of it shown."""

    cases: int = 0
    wrong: list[str] = field(default_factory=list)
    near_ties: int = 0
    notes: list[str] = field(default_factory=list)

    def detail(self) -> str:
        """One line."""
        more = [f"and {len(self.wrong) - 1} more"] if len(self.wrong) > 1 else []
        ties = [f"{self.near_ties} near-ties set aside"] if self.near_ties else []
        return "; ".join([*self.wrong[:1], *more, *self.notes, *ties])


@dataclass(frozen=True)
class Check:
    """A check that has not run yet."""

    name: str
    compared: str
    run: Callable[[], Finding]

    def settle(self) -> CheckResult:
        """Run it; what is refused is skipped, and a check that breaks is one that fails."""
        try:
            found = self.run()
        except UnsupportedError as error:
            found = Finding(notes=[f"refused: {error}"])
        except Exception as error:
            found = Finding(wrong=[f"{type(error).__name__}: {error}"])
        return CheckResult(
            name=self.name,
            compared=self.compared,
            cases=found.cases,
            ok=not found.wrong,
            detail=found.detail(),
            skipped=found.cases == 0 and not found.wrong,
        )
