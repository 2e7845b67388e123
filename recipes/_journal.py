"""What is finished, a line each, so that a second start goes on where the first one ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multispec.errors import UsageError


class Journal:
    """A file of JSON lines: the settings first, then whatever was added, at once and for good."""

    def __init__(self, path: Path, settings: Mapping[str, Any], lines: list[dict[str, Any]]) -> None:
        self._path, self._settings = path, dict(settings)
        self.lines = lines

    @staticmethod
    def at(path: Path, settings: Mapping[str, Any], *, restart: bool = False) -> Journal:
        """That of a file, or a new one; ``restart`` throws away what is there.

        Raises:
            UsageError: what is there was made with other settings.
        """
        found = [] if restart or not path.exists() else _read(path)
        if not found:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(dict(settings)) + "\n", encoding="utf-8")
        else:
            _agree(path, found[0], settings)
            # A line that a start was interrupted in is gone for good.
            path.write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")
        return Journal(path, settings, found[1:])

    def add(self, line: Mapping[str, Any]) -> None:
        """One more, kept at once."""
        self.lines.append(dict(line))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(line)) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _agree(path: Path, known: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    names = [name for name in {**known, **asked} if known.get(name) != asked.get(name)]
    if names:
        was = ", ".join(f"{name}={known.get(name)!r}" for name in names)
        now = ", ".join(f"{name}={asked.get(name)!r}" for name in names)
        raise UsageError(
            f"What is in {path} was measured with other settings: got {now}, expected {was}. Pass --restart "
            "to throw it away, or another --out."
        )
