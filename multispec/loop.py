"""THE loop: draft, verify, commit, roll back.

A round is one transaction: verify; trim to length, stop and end; then cache, drafter, report and
stream. The rows of a batch advance by different amounts and never look at each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from multispec.branches import begin
from multispec.errors import DraftError, DrafterWarning, MultispecError, OutOfMemoryError
from multispec.frames import whole_steps
from multispec.protocols import MAX_NODES, Context, Drafter, DraftSession, Request, Target, TargetSession
from multispec.report import Clock
from multispec.row import Outcome, Row
from multispec.stream import Draft, Step


def rounds(target: Target, rows: Sequence[Row], clock: Clock) -> Iterator[list[Step]]:
    """Generate: yields the symbols that each round commits. Rows end up in ``rows`` themselves."""
    with clock.measure("total"), torch.inference_mode():
        session, scores, drafting = _open(target, rows, clock)
    live, drafts = list(rows), {row.number: Draft.empty() for row in rows}
    while True:
        with clock.measure("total"), torch.inference_mode():
            outcomes = verify(live, drafts, scores)
            commit(session, drafting, live, drafts, outcomes, scores)
            steps = [step for row in live for step in row.steps(len(outcomes[row.number].emitted))]
            live = retire(session, drafting, live, clock)
        yield steps
        if not live:
            return
        with clock.measure("total"), torch.inference_mode():
            with clock.measure("draft"):
                drafts = drafting.propose(live)
            with clock.measure("verify"):
                scores = score(session, live, drafts)


def score(session: TargetSession, live: Sequence[Row], drafts: Mapping[int, Draft]) -> dict[int, Tensor]:
    """One pass of the target over every row's last symbol and its draft."""
    numbers = [row.number for row in live]
    roots = [symbol for row in live for symbol in row.root]
    with memory_for(lambda: f"a pass over {sum(map(len, drafts.values())) + len(live)} symbols"):
        found = session.score(numbers, roots, [drafts[number] for number in numbers])
    for row, calls in zip(live, found.calls or [1] * len(live), strict=True):
        row.report.target_calls += calls
    return dict(zip(numbers, found.logits, strict=True))


def verify(
    live: Sequence[Row], drafts: Mapping[int, Draft], scores: Mapping[int, Tensor]
) -> dict[int, Outcome]:
    """Each row decides on its draft and trims what it emits."""
    return {row.number: row.decide(drafts[row.number], scores[row.number]) for row in live}


def commit(
    session: TargetSession,
    drafting: Drafting,
    live: Sequence[Row],
    drafts: Mapping[int, Draft],
    outcomes: Mapping[int, Outcome],
    scores: Mapping[int, Tensor],
) -> None:
    """Caches keep what was accepted and roll the rest back; drafters learn what became of their drafts."""
    scored = [row for row in live if row.report.rounds > 1]
    if scored:
        session.commit([row.number for row in scored], [outcomes[row.number].path for row in scored])
    drafting.observe(live, drafts, outcomes, scores)


def retire(session: TargetSession, drafting: Drafting, live: Sequence[Row], clock: Clock) -> list[Row]:
    """Rows that go on; the others leave the batch with their time on the clock."""
    done = [row for row in live if row.finish_reason is not None]
    if not done:
        return list(live)
    session.drop([row.number for row in done])
    drafting.end(done)
    for row in done:
        row.report.clock = clock.snapshot()
    return [row for row in live if row.finish_reason is None]


def _open(
    target: Target, rows: Sequence[Row], clock: Clock
) -> tuple[TargetSession, dict[int, Tensor], Drafting]:
    capacity = [len(row.history) + row.settings.max_new_tokens for row in rows]
    with clock.measure("prefill"), memory_for(lambda: f"the prompts of {len(rows)} rows"):
        session = begin(target, [row.settings.prompt for row in rows], capacity, MAX_NODES)
        logits = session.prefill().logits
    with clock.measure("draft"):
        drafting = Drafting(target, rows, session)
    for row in rows:
        row.report.target_calls += 1
    return session, {row.number: logits[place] for place, row in enumerate(rows)}, drafting


class memory_for:  # noqa: N801
    """``with memory_for(what):`` names what was being computed when memory ran out.

    Raises:
        OutOfMemoryError: in place of torch's own error.
    """

    def __init__(self, what: Callable[[], str]) -> None:
        self._what = what

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Translate."""
        if not isinstance(error, (MemoryError, RuntimeError)) or isinstance(error, MultispecError):
            return
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(
            error
        ):
            return
        raise OutOfMemoryError(
            f"No memory left for {self._what()}: {(str(error) or 'MemoryError').splitlines()[0]}. "
            "Lower the batch, the prompt or max_new_tokens, or load the model in a smaller dtype."
        ) from error


class Drafting:
    """The drafters of a batch: one session per drafter, over the rows that use it.

    A drafter is advice. When it raises or breaks its contract, its rows go on plainly, one warning
    says so, and the report counts it.
    """

    def __init__(self, target: Target, rows: Sequence[Row], session: TargetSession | None = None) -> None:
        self._target, self._session = target, session
        self._sessions: list[tuple[DraftSession, set[int]]] = []
        groups: dict[int, tuple[Drafter, list[Row]]] = {}
        for row in rows:
            drafter = row.settings.drafter
            if drafter is not None:
                groups.setdefault(id(drafter), (drafter, []))[1].append(row)
        for drafter, members in groups.values():
            self._begin(drafter, members)

    def _begin(self, drafter: Drafter, members: Sequence[Row]) -> None:
        context = Context(
            prompts={row.number: replace(row.settings.prompt, encoded=None) for row in members},
            capacity={row.number: len(row.history) + row.settings.max_new_tokens for row in members},
            vocab_size=self._target.spec.vocab_size,
            device=self._target.device,
            specs={row.number: row.spec for row in members},
            trees=self._target.capabilities.supports_tree and self._target.spec.step == 1,
            target=self._target,
            session=self._session,
        )
        try:
            session = drafter.begin(context)
        except MultispecError:
            raise  # a pair that cannot work is the user's to know at once
        except Exception as error:
            self._set_aside(members, error)
            return
        self._sessions.append((session, {row.number for row in members}))
        for row in members:
            row.report.draft_calls += session.calls

    def propose(self, live: Sequence[Row]) -> dict[int, Draft]:
        """A checked draft for every row; empty where there is nothing to draft."""
        drafts = {row.number: Draft.empty() for row in live}
        asked = {row.number: request for row in live if (request := row.request(len(live))) is not None}
        by_number = {row.number: row for row in live}
        for session, members in self._sessions:
            requests = [request for number, request in asked.items() if number in members]
            if requests:
                drafts |= self._ask(session, requests, by_number)
        return drafts

    def _ask(
        self, session: DraftSession, requests: Sequence[Request], rows: Mapping[int, Row]
    ) -> dict[int, Draft]:
        before = session.calls
        try:
            found = session.propose(requests)
            if len(found) != len(requests):
                raise DraftError(
                    f"propose returns a draft per request: got {len(found)} for {len(requests)}."
                )
        except Exception as error:
            self._set_aside([rows[request.row] for request in requests], error)
            return {}
        for request in requests:
            rows[request.row].report.draft_calls += session.calls - before
        return {
            request.row: self._checked(draft, request, rows[request.row])
            for request, draft in zip(requests, found, strict=True)
        }

    def _checked(self, draft: object, request: Request, row: Row) -> Draft:
        can = self._target.capabilities
        try:
            if not isinstance(draft, Draft):
                raise DraftError(f"propose returns a Draft per request: got {type(draft).__name__}.")
            if len(draft) > request.budget.nodes:
                raise DraftError(
                    f"A draft of {len(draft)} nodes exceeds the budget of {request.budget.nodes}."
                )
            if not can.supports_tree and not draft.is_chain:
                raise DraftError(f"This model scores chains only ({can.why}): got a tree.")
            checked = draft.check(self._target.spec.vocab_size)
            return checked if row.step == 1 else whole_steps(checked, row.step)
        except DraftError as error:
            self._set_aside([row], error)
            return Draft.empty()

    def _set_aside(self, rows: Sequence[Row], error: Exception) -> None:
        why = f"{type(error).__name__}: {error}"
        for row in rows:
            row.give_up_drafting(why)
        numbers = {row.number for row in rows}
        for _, members in self._sessions:
            members -= numbers
        # A session that nobody uses any more gives its cache back.
        self._sessions = [(session, members) for session, members in self._sessions if members]
        message = f"The drafter failed and was set aside; the output is not affected. {why}"
        warnings.warn(message, DrafterWarning, stacklevel=2)

    def observe(
        self,
        live: Sequence[Row],
        drafts: Mapping[int, Draft],
        outcomes: Mapping[int, Outcome],
        scores: Mapping[int, Tensor],
    ) -> None:
        """Tell each row's drafter what became of its draft."""
        for session, members in self._sessions:
            for row in live:
                if row.number in members:
                    n = row.number
                    seen = row.observation(drafts[n], outcomes[n], scores[n])
                    try:
                        session.observe(n, seen)
                    except Exception as error:
                        self._set_aside([row], error)

    def end(self, rows: Sequence[Row]) -> None:
        """Free rows that are done."""
        for session, members in self._sessions:
            gone = members & {row.number for row in rows}
            members -= gone
            if gone:
                try:
                    session.end(sorted(gone))
                except Exception as error:
                    self._set_aside([row for row in rows if row.number in gone], error)
