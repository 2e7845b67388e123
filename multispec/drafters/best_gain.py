"""Best gain: the drafter drafts that is expected to save most, for what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

from multispec.drafters.several import Members, require_drafters
from multispec.errors import UsageError
from multispec.protocols import Context, Drafter, DraftSession, Request
from multispec.stream import Draft, Observation
from multispec.tree import depths


@dataclass(frozen=True)
class BestGain:
    """Draft with the one of several drafters whose expected gain is the largest.

    The hybrid of ArcticInference (Oliaro et al. 2024, "SuffixDecoding", section 4.3: a suffix tree drafts
    where its score exceeds what a draft model is expected to get accepted), with scores that are measured:
    with a the share of symbols that passed their test, a draft of depth D is expected to give
    1 + a + .. + a^D symbols, for 1 + ``costs`` of a pass of the target. a is kept for each drafter and row,
    and for each size of its drafts (1, 2 to 3, 4 to 7, ...), since long matches are better ones; it begins at
    1/2, and what is older counts by ``memory`` per round, so that nobody is written off for good.

    Drafters of cost 0 are asked in every round, the others when they are expected to be the best. What a
    drafter drew in this round is never looked at: only drafts that follow from the past are judged by their
    own size, drawn ones by what was asked for.

    Raises:
        UsageError: no drafters, not one cost >= 0 for each, or a memory outside (0, 1].

    >>> from multispec.drafters import PromptLookup
    >>> BestGain((PromptLookup(max_ngram=5), PromptLookup(max_ngram=1)), costs=(0.0, 0.0)).num_draft_tokens
    10
    """

    name: ClassVar[str] = "best_gain"
    paper: ClassVar[str] = "Oliaro et al. 2024, arXiv 2411.04975"
    trained: ClassVar[bool] = False
    drafters: Sequence[Drafter]
    costs: Sequence[float]
    memory: float = 0.95

    def __post_init__(self) -> None:
        require_drafters(self.name, self.drafters)
        sound = len(self.costs) == len(self.drafters) and all(isfinite(c) and c >= 0 for c in self.costs)
        if not sound or not 0 < self.memory <= 1:
            raise UsageError(
                "best_gain needs for each drafter the cost of a draft, >= 0 and in passes of the target, and "
                f"0 < memory <= 1: got {len(self.drafters)} drafters, costs {list(self.costs)}, memory "
                f"{self.memory}. Use 0 for drafters that look up."
            )

    @property
    def num_draft_tokens(self) -> int:
        """The most that one of them drafts."""
        return max(drafter.num_draft_tokens for drafter in self.drafters)

    def begin(self, context: Context) -> DraftSession:
        """A session of each, and a record per row."""
        members = Members(self.drafters, context)
        return _Session(members, self.costs, {row: _Record(self.memory) for row in context.prompts})


@dataclass
class _Record:
    """How many symbols were tested and passed, by drafter and size class."""

    memory: float
    counts: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    def expected(self, member: int, size: int) -> float:
        """1 + a + .. + a^size symbols."""
        passed, tests = self.counts.get((member, size.bit_length()), [0.0, 0.0])
        a = (passed + 1) / (tests + 2)
        return sum(a**d for d in range(size + 1))

    def add(self, member: int, size: int, accepted: int) -> None:
        """A draft of that depth, of which so many symbols passed."""
        for count in self.counts.values():
            count[:] = [n * self.memory for n in count]
        count = self.counts.setdefault((member, size.bit_length()), [0.0, 0.0])
        count[0] += accepted
        count[1] += min(accepted + 1, size)


class _Session:
    def __init__(self, members: Members, costs: Sequence[float], records: dict[int, _Record]) -> None:
        self._members, self._costs, self._records = members, costs, records
        self._chosen: dict[int, tuple[int, int]] = {}

    @property
    def calls(self) -> int:
        """Forward passes of all members."""
        return self._members.calls

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Ask the free ones, then whoever is expected to be best."""
        drafts: dict[tuple[int, int], Draft] = {}
        for member, cost in enumerate(self._costs):
            if cost == 0:
                found = self._members.ask(member, requests)
                drafts |= {(r.row, member): draft for r, draft in zip(requests, found, strict=True)}
        self._chosen |= {r.row: self._best(r, drafts) for r in requests}
        for member, cost in enumerate(self._costs):
            asked = [r for r in requests if cost > 0 and self._chosen[r.row][0] == member]
            found = self._members.ask(member, asked)
            drafts |= {(r.row, member): draft for r, draft in zip(asked, found, strict=True)}
        return [drafts[r.row, self._chosen[r.row][0]] for r in requests]

    def _best(self, request: Request, drafts: dict[tuple[int, int], Draft]) -> tuple[int, int]:
        """The drafter with the largest gain, and the depth that it is judged by."""
        record, found = self._records[request.row], list[tuple[float, int, int]]()
        for member, cost in enumerate(self._costs):
            draft = drafts.get((request.row, member))
            size = min(self._members.sizes[member], request.budget.nodes)
            if draft is not None and draft.kind == "point":
                size = max(depths(draft.parents), default=0)
            found.append((record.expected(member, size) / (1 + cost), -member, size))
        _, member, size = max(found)
        return -member, size

    def observe(self, row: int, observation: Observation) -> None:
        """The round, to who drafted for it; and to the record."""
        winner, size = self._chosen.pop(row, (None, 0))
        if winner is not None and size and len(observation.draft):
            self._records[row].add(winner, size, min(len(observation.path), size))
        self._members.tell(row, winner, observation)

    def end(self, rows: Sequence[int]) -> None:
        """Forget rows that are done."""
        self._members.end(rows)
