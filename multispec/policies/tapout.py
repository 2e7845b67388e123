"""TapOut: a bandit whose arms are other policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from multispec.errors import UsageError
from multispec.policies.ada_edl import AdaEDL
from multispec.policies.arms import Played
from multispec.policies.confidence import Confidence
from multispec.policies.draft_and_verify import DraftAndVerify
from multispec.policies.svip import SVIP
from multispec.protocols import Budget, Past, Policy


class _State(NamedTuple):
    """What each arm gave, and what each of the policies remembers."""

    played: Played
    memories: tuple[object, ...]


def _arms() -> tuple[Policy, ...]:
    return (Confidence(), SVIP(), AdaEDL(), DraftAndVerify())


@dataclass(frozen=True, kw_only=True)
class TapOut:
    """Choose among stopping rules by UCB1: the largest mean reward + sqrt(2 ln t / n).

    Sridhar et al. (2025), "TapOut: A Bandit-Based Approach to Dynamic Speculative Decoding", section 3, by
    rounds. One that accepts n of g drafted symbols, where the longest draft has G, gives the reward
    ``blend`` n / G + (1 - ``blend``) n / g. Each policy remembers for itself, and sees only the rounds
    that it was chosen for.

    Raises:
        UsageError: no policies, a blend outside [0, 1].

    >>> TapOut(policies=(SVIP(max_draft_tokens=3), Confidence())).budget(Past(), 5).nodes
    3
    """

    name: ClassVar[str] = "tapout"
    paper: ClassVar[str] = "Sridhar et al. 2025, arXiv 2511.02017"
    policies: Sequence[Policy] = field(default_factory=_arms)
    blend: float = 0.5
    explore: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        if not self.policies or not 0 <= self.blend <= 1:
            raise UsageError(
                f"tapout needs one policy or more and a blend in [0, 1]: got {len(self.policies)} and "
                f"{self.blend}. Its paper has 0.5."
            )

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """The budget of the policy that is chosen."""
        state = past.memory
        if not isinstance(state, _State):
            state = _State(Played.begun(len(self.policies)), (None,) * len(self.policies))
            return self._asked(state, 0, past, default_nodes)
        last, played = state.played.arm, state.played.rewarded(self._reward(past))
        arm = played.best(self.explore)
        mine = past._replace(memory=state.memories[last])
        if arm == last:
            return self._asked(_State(played, state.memories), arm, mine, default_nodes)
        # The policy that steps down learns of its last round; the one that steps up was not in it.
        known = self._keep(state.memories, last, self.policies[last].budget(mine, default_nodes).memory)
        fresh = Past(rounds=past.rounds, rows=past.rows, memory=known[arm])
        return self._asked(_State(played, known), arm, fresh, default_nodes)

    def _asked(self, state: _State, arm: int, past: Past, default_nodes: int) -> Budget:
        wanted = self.policies[arm].budget(past, default_nodes)
        memories = self._keep(state.memories, arm, wanted.memory)
        return wanted._replace(memory=_State(state.played._replace(arm=arm), memories))

    @staticmethod
    def _keep(memories: tuple[object, ...], arm: int, memory: object) -> tuple[object, ...]:
        return (*memories[:arm], memory, *memories[arm + 1 :])

    def _reward(self, past: Past) -> float:
        if not past.last_depth:
            return 0.0
        longest, kept = max(past.last_nodes, past.last_depth), past.last_kept
        return self.blend * kept / longest + (1 - self.blend) * kept / past.last_depth
