"""Our own generation as a system of the benchmark: plainly, by a fixed method, or as "auto" decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from transformers import GenerationConfig

from multispec.bench.cases import AUTO, PLAIN, Case, Request, Run
from multispec.errors import MultispecError, UsageError
from multispec.generator import Generator

# Methods that are tried beside "auto", as the catalog writes them: exact with the seed, so that their output
# can be compared, and at home on the stream.
FIXED: dict[str, tuple[str, ...]] = {
    "text": (
        "draft_model:num_draft_tokens=2",
        "draft_model:num_draft_tokens=4",
        "draft_model:num_draft_tokens=6",
        "prompt_lookup",
        "suffix_automaton",
        "token_recycling",
    ),
    "image": (
        "jacobi:num_draft_tokens=32",
        "jacobi:num_draft_tokens=64",
        "jacobi:num_draft_tokens=128",
        "draft_model:num_draft_tokens=8",
    ),
    "speech": (
        "jacobi:num_draft_tokens=4",
        "jacobi:num_draft_tokens=8",
        "jacobi:num_draft_tokens=16",
        "draft_model:num_draft_tokens=4",
    ),
}


@dataclass
class Meter:
    """Seconds and calls inside forward passes."""

    seconds: float = 0.0
    calls: int = 0

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return forward(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self.calls += 1

        return timed


@runtime_checkable
class Metered(Protocol):
    """A target whose forward passes can be timed."""

    def meter(self, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put ``around`` the forward passes."""
        ...


def metered(*targets: Any) -> Meter | None:
    """One meter around the forward passes of these targets; None where one of them cannot be timed."""
    meter = Meter()
    for target in targets:
        if not isinstance(target, Metered):
            return None
        try:
            target.meter(meter.around)
        except MultispecError:
            return None
    return meter


@dataclass(frozen=True, eq=False)
class Ours:
    """A generator with a drafter and a policy; text has no end, so that all systems make as many symbols."""

    name: str
    generator: Generator
    drafter: Any = None
    policy: Any = None
    endless: bool = False
    meter: Meter | None = None
    # One prompt after the other, where others run them together.
    queued: bool = True
    refused: dict[str, str] = field(default_factory=dict)

    def refuses(self, case: Case) -> str:
        """Why the method cannot be used with this model."""
        return self.refused.get(case.stream, "")

    def run(self, request: Request) -> Run:
        """Generate, all prompts of the request together."""
        if self.meter is not None:
            self.meter.seconds = 0.0
        start = time.perf_counter()
        made = self._generate(request)
        seconds = time.perf_counter() - start
        reports = [one.report for one in made]
        if failed := [one for one in reports if one.drafter_failures]:
            raise UsageError(f"{self.name}: {failed[0].notes[-1]}")
        return Run(
            seconds=seconds,
            tokens=tuple(tuple(one.tokens.flatten().tolist()) for one in made),
            forward=None if self.meter is None else self.meter.seconds,
            rounds=sum(one.rounds for one in reports),
            calls=sum(one.target_calls for one in reports),
            why=tuple(line for one in reports for line in one.why),
        )

    def _generate(self, request: Request) -> list[Any]:
        pairs = list(zip(request.prompts, request.sampling, strict=True))
        groups = [pairs] if self.queued else [[pair] for pair in pairs]
        made = []
        for group in groups:
            made += self.generator.generate(
                [prompt for prompt, _ in group],
                drafter=self.drafter,
                policy=self.policy,
                sampling=[sampling for _, sampling in group],
                max_new_tokens=request.new_tokens,
                generation_config=GenerationConfig(eos_token_id=[]) if self.endless else None,
            )
        return made


def our_systems(
    generator: Generator, stream: str, methods: Sequence[str] = (), meter: Meter | None = None
) -> tuple[list[Ours], dict[str, str]]:
    """Plain, "auto" and the fixed methods; and why some of these cannot be made."""
    endless = stream == "text"
    plain = Ours(PLAIN, generator, None, "off", endless, meter)
    systems = [plain, Ours(AUTO, generator, "auto", "auto", endless, meter)]
    left_out = {}
    for method in methods or FIXED[stream]:
        try:
            drafter = generator.methods.drafter(method)
        except UsageError as error:
            left_out[method] = str(error)
        else:
            short = method.replace("num_draft_tokens=", "").replace(":", " ")
            systems.append(Ours(f"multispec {short}", generator, drafter, None, endless, meter))
    return systems, left_out
