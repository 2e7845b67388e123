"""The number of threads that runs a model best; a clock that we hold decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import multispec as ms
from multispec.errors import UsageError
from multispec.targets import target_for, threads
from multispec.targets.threads import candidates, fastest, set_threads
from tests.models import zoo


@pytest.fixture(autouse=True)
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that is set and read and starts no threads."""
    held = [1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: held[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: held.__setitem__(0, count))


def clock(seconds: dict[int, float]) -> Callable[[], float]:
    """One on which a round with so many threads takes so long."""
    now = [0.0, 0]

    def read() -> float:
        now[1] += 1
        if now[1] % 2 == 0:
            now[0] += seconds[torch.get_num_threads()]
        return now[0]

    return read


@pytest.mark.parametrize("name", ["llama", "lfm2"])
@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 4.0, 2: 3.0, 4: 2.0}, 4),
        ({1: 1.0, 2: 1.2, 4: 5.0}, 1),
        ({1: 2.0, 2: 1.0, 4: 0.98}, 2),  # two cores more for two hundredths
    ],
)
def test_the_fastest_is_chosen(name: str, seconds: dict[int, float], best: int, unchecked: None) -> None:
    before = torch.get_num_threads()
    assert fastest(target_for(zoo.shared(name)), list(seconds), clock(seconds)) == best
    assert torch.get_num_threads() == before


def test_one_core_leaves_no_choice() -> None:
    assert candidates(1) == [1]
    assert candidates(12) == [1, 2, 4, 8, 12]
    assert fastest(target_for(zoo.shared("llama")), [1]) == torch.get_num_threads()


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_a_target_that_takes_more_than_ids_keeps_what_is_set(name: str) -> None:
    torch.set_num_threads(2)
    assert fastest(target_for(zoo.shared(name)), [1, 4]) == 2
    assert torch.get_num_threads() == 2


def test_it_is_asked_for_when_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    ms.load(model=zoo.shared("llama"))
    assert torch.get_num_threads() == before, "nobody asked"
    ms.load(model=zoo.shared("llama"), threads=3)
    assert torch.get_num_threads() == 3
    monkeypatch.setattr(threads, "fastest", lambda target: 2)
    ms.load(model=zoo.shared("llama"), threads="auto")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("wrong", [0, -1, True, "all"])
def test_what_is_no_number_of_threads(wrong: Any) -> None:
    with pytest.raises(UsageError, match='threads is "auto" or a whole number, 1 or more'):
        set_threads(wrong, target_for(zoo.shared("llama")))
