"""`multispec.__all__` is the public interface: complete, sorted, and all of it exists."""

from __future__ import annotations

from importlib.metadata import version

import multispec


def test_all_is_sorted_without_repeats() -> None:
    assert list(multispec.__all__) == sorted(set(multispec.__all__))


def test_all_is_complete() -> None:
    public = {
        name
        for name, value in vars(multispec).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("multispec")
    }
    assert public <= set(multispec.__all__)


def test_each_name_exists() -> None:
    missing = [name for name in multispec.__all__ if not hasattr(multispec, name)]
    assert not missing


def test_version_is_the_installed_one() -> None:
    assert multispec.__version__ == version("multispec")
