"""What every test relies on: one thread, no network, models imported before shapes are checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module

import jaxtyping
import pytest
from hypothesis import settings

# Read when torch and transformers are imported, here and in the programs that tests start. On tiny
# tensors more threads only wait for each other: a hundred times slower where other programs run.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# What a shape-checked module imports first is compiled anew, ten seconds of it, so import it here.
import_module("transformers.generation.utils")

# The same examples everywhere and every time: a failure is one of the change, not of the day.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def untimed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No round takes any time, so that what "auto" does never depends on the machine; ``timed`` opts out."""
    if "timed" not in request.fixturenames:
        report = import_module("multispec.report")
        monkeypatch.setattr(report.Clock, "lap", lambda clock, widest: report.NO_PACE)
        kept_costs = import_module("multispec.policies.kept_costs")
        monkeypatch.setattr(kept_costs.KeptCosts, "__call__", lambda costs, prompt: None)
        # Fixtures of a module or a session run before this one, with a clock: what they learned is not used.
        experience = import_module("multispec.experience")
        monkeypatch.setattr(experience.Experience, "recalled", lambda known, settings, together: settings)


@pytest.fixture
def timed() -> None:
    """Rounds take the time that they take."""


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As users run it, without the checker of types: it would complain first, and takes most of the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
