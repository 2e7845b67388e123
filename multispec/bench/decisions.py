"""What deciding costs: the time inside ``policy="auto"``, and that of the cost table it begins with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

from multispec.bench.cases import Request
from multispec.bench.ours import Ours
from multispec.errors import MultispecError
from multispec.policies.kept_costs import sketched
from multispec.protocols import Budget, Past, Policy
from multispec.verifiers import Coupled

# The most that a cost table may take to measure.
_TABLE_SECONDS = 1.5


@dataclass
class _Spent:
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Clocked:
    """Another policy, timed."""

    name: ClassVar[str] = "clocked"
    policy: Policy
    spent: _Spent = field(default_factory=_Spent)

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """The other's."""
        start = time.perf_counter()
        try:
            return self.policy.budget(past, default_nodes)
        finally:
            self.spent.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class Decisions:
    """The share of the time inside the policy, and the seconds that its cost table took, which is kept."""

    share: float
    table_seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """Every figure."""
        return {"share": self.share, "table_seconds": self.table_seconds}


def decisions(auto: Ours, request: Request) -> Decisions:
    """Run a request with a clock around every decision, and measure a cost table."""
    generator = auto.generator
    prompt = generator.modality.encode(request.prompts[0])
    drafter, policy = generator.methods.pair("auto", "auto", Coupled(), prompt)
    clocked = Clocked(policy)
    run = Ours("auto, clocked", generator, drafter, clocked, auto.endless).run(request)
    start = time.perf_counter()
    try:
        sketched(generator.target, prompt, _TABLE_SECONDS)
        table = time.perf_counter() - start
    except MultispecError:  # parallel slots have none
        return Decisions(clocked.spent.seconds / run.seconds, None)
    return Decisions(clocked.spent.seconds / run.seconds, table)
