"""Merged: the drafts of several drafters in one tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from multispec.drafters.references import takes_trees
from multispec.drafters.several import Members, require_drafters
from multispec.errors import UnsupportedError
from multispec.protocols import Context, Drafter, DraftSession, Request
from multispec.stream import Draft, Observation
from multispec.structures import PrefixTree


@dataclass(frozen=True)
class Merged:
    """Put what several drafters draft into one tree, equal beginnings once.

    Miao et al. (2024), "SpecInfer", section 3 (merge-based token trees): the tree holds every sequence that
    some drafter's tree holds. The budget is shared out in proportion to ``num_draft_tokens``, the first ones
    first. Each drafter learns what became of its own nodes.

    The merged symbols are point masses, accepted with p(x), which keeps every promise whatever law they were
    drawn from; under ``coupled`` nothing is lost by it. Where only one drafter drafts, its draft goes on as
    it is, with its q.

    Raises:
        UsageError: no drafters.

    >>> from multispec.drafters import PromptLookup
    >>> Merged((PromptLookup(max_ngram=5), PromptLookup(max_ngram=1))).num_draft_tokens
    20
    """

    name: ClassVar[str] = "merged"
    paper: ClassVar[str] = "Miao et al. 2024, arXiv 2305.09781"
    trained: ClassVar[bool] = False
    drafters: Sequence[Drafter]

    def __post_init__(self) -> None:
        require_drafters(self.name, self.drafters)

    @property
    def num_draft_tokens(self) -> int:
        """What all of them draft together."""
        return sum(drafter.num_draft_tokens for drafter in self.drafters)

    def begin(self, context: Context) -> DraftSession:
        """A session of each.

        Raises:
            UnsupportedError: a target that scores chains only.
        """
        if not context.trees or not all(takes_trees(context, row) for row in context.prompts):
            raise UnsupportedError(
                "merged puts several drafts into one tree, and here only chains can be scored (parallel "
                "slots, or a model in its own cache). Use fallback or best_gain with the same drafters."
            )
        return _Session(Members(self.drafters, context))


@dataclass
class _Part:
    """A member's draft, and the nodes of the tree that its nodes became."""

    draft: Draft
    nodes: list[int]


class _Session:
    def __init__(self, members: Members) -> None:
        self._members = members
        self._parts: dict[int, list[_Part]] = {}

    @property
    def calls(self) -> int:
        """Forward passes of all members."""
        return self._members.calls

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        """Each member's draft, one after the other into the tree."""
        shares = {r.row: shared_out(r.budget.nodes, self._members.sizes) for r in requests}
        found: dict[int, list[Draft]] = {r.row: [Draft.empty()] * len(self._members.sizes) for r in requests}
        for member in range(len(self._members.sizes)):
            asked = [
                r._replace(budget=r.budget._replace(nodes=shares[r.row][member]))
                for r in requests
                if shares[r.row][member]
            ]
            for request, draft in zip(asked, self._members.ask(member, asked), strict=True):
                found[request.row][member] = draft
        return [self._merge(r, found[r.row]) for r in requests]

    def _merge(self, request: Request, drafts: Sequence[Draft]) -> Draft:
        said = [draft for draft in drafts if len(draft)]
        if len(said) == 1:
            # As it is, also with siblings that are alike: whether they are is what was drawn.
            self._parts[request.row] = [_Part(draft, list(range(len(draft)))) for draft in drafts]
            return said[0]
        tree = PrefixTree(request.budget.nodes)
        self._parts[request.row] = [_Part(draft, _grown(tree, draft)) for draft in drafts]
        return tree.draft()

    def observe(self, row: int, observation: Observation) -> None:
        """To each member, what became of its own nodes."""
        parts = self._parts.pop(row, None)
        if parts is None:
            self._members.tell(row, None, observation)
            return
        self._members.forget(row)
        for session, part in zip(self._members.sessions, parts, strict=True):
            session.observe(row, _own(observation, part))

    def end(self, rows: Sequence[int]) -> None:
        """Forget rows that are done."""
        self._members.end(rows)


def shared_out(nodes: int, sizes: Sequence[int]) -> list[int]:
    """At most ``nodes`` in proportion to ``sizes``; what is left over goes to the first ones.

    >>> shared_out(5, [10, 10])
    [3, 2]
    """
    total = sum(sizes)
    if nodes >= total:
        return list(sizes)
    found = [nodes * size // total for size in sizes]
    for member in range(nodes - sum(found)):
        found[member] += 1
    return found


def _grown(tree: PrefixTree, draft: Draft) -> list[int]:
    nodes: list[int] = []
    for token, parent in zip(draft.ids, draft.parents, strict=True):
        node = tree.grow(-1 if parent < 0 else nodes[parent], token)
        nodes.append(-1 if node is None else node)
    return nodes


def _own(observation: Observation, part: _Part) -> Observation:
    """The round as seen from a member's own draft."""
    rows = [0, *(node + 1 for node in part.nodes)]
    accepted, path, at = {*observation.path}, list[int](), -1
    for node, (parent, whole) in enumerate(zip(part.draft.parents, part.nodes, strict=True)):
        if parent == at and whole in accepted:
            path.append(node)
            at = node
    law = type(observation.law)(observation.law.scores[rows], greedy=observation.law.greedy)
    return observation._replace(
        draft=part.draft,
        path=tuple(path),
        logits=observation.logits[rows],
        law=law,
        hidden=None if observation.hidden is None else observation.hidden[rows],
    )
