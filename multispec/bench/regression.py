"""Ratios of an earlier run, and which of them are worse now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from multispec.bench.cases import PLAIN, is_ours
from multispec.bench.run import Cell
from multispec.errors import UsageError


class Fall(NamedTuple):
    """A ratio that fell by more than was tolerated."""

    case: str
    what: str
    before: float
    now: float

    @property
    def share(self) -> float:
        """How much of it is left."""
        return self.now / self.before


def ratios(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """What is kept of a run: our systems beside our plain decoding, and that beside the peers."""
    found: dict[str, dict[str, float]] = {}
    for cell in cells:
        ours = [name for name in cell.names if is_ours(name) and name != PLAIN]
        peers = [name for name in cell.names if not is_ours(name)]
        found[cell.case.label] = {f"{name} / {PLAIN}": cell.ratio(name, PLAIN) for name in ours} | {
            f"{PLAIN} / {name}": cell.ratio(PLAIN, name) for name in peers
        }
    return found


def save(path: Path, cells: Sequence[Cell], machine: dict[str, Any]) -> None:
    """Write the ratios of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"machine": machine, "ratios": ratios(cells)}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> dict[str, dict[str, float]]:
    """The ratios in a file.

    Raises:
        UsageError: no such file, or one that is not of this kind.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["ratios"]
        return {case: {what: float(value) for what, value in rows.items()} for case, rows in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{str(path)!r} holds no ratios of an earlier run ({type(error).__name__}: {error}). Make such a "
            "file with multispec bench --save-baseline FILE."
        ) from error


def falls(before: dict[str, dict[str, float]], cells: Sequence[Cell], tolerance: float) -> list[Fall]:
    """What both runs measured and is now less than ``1 - tolerance`` of what it was; the worst first."""
    found = [
        Fall(case, what, before[case][what], now)
        for case, rows in ratios(cells).items()
        for what, now in rows.items()
        if what in before.get(case, {}) and now < (1 - tolerance) * before[case][what]
    ]
    return sorted(found, key=lambda fall: fall.share)
