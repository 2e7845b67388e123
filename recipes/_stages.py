"""The stages of a training, in order: all of them or one, with a pool of threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from recipes import _flags
from recipes._text_trainer import thread_pool


class Staged(Protocol):
    """Settings of a training: the stage to run, a small try, threads, and the folder of what is made."""

    @property
    def stage(self) -> str:
        """One of the stages, or "all"."""
        ...

    @property
    def smoke(self) -> bool:
        """Whether every stage is to run in seconds."""
        ...

    @property
    def workers(self) -> int:
        """Threads of the pool."""
        ...

    @property
    def folder(self) -> Path:
        """Where stages leave what they made."""
        ...


S = TypeVar("S", bound=Staged)
Stages = Mapping[str, Callable[[S, ThreadPoolExecutor], Any]]


def parse(
    kind: type[S], stages: Stages[S], smoke: Callable[[S], S], argv: Sequence[str] | None, doc: str | None
) -> S:
    """The settings that the flags give, made small where a smoke test is asked for."""

    def wrong(settings: S) -> str:
        if settings.stage in ("all", *stages):
            return ""
        return f"--stage {settings.stage!r}: choose from all, {', '.join(stages)}"

    settings = _flags.parse(kind, argv, _flags.first_line(doc), wrong)
    return smoke(settings) if settings.smoke else settings


def run(settings: S, stages: Stages[S]) -> None:
    """Run one stage or all of them."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the parallelism is in the pool
    try:
        with thread_pool(settings.workers) as pool:
            for stage in stages if settings.stage == "all" else (settings.stage,):
                stages[stage](settings, pool)
    finally:
        torch.set_num_threads(threads)
