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

from multispec.errors import DraftError, DrafterWarning, MultispecError, OutOfMemoryError
from multispec.frames import whole_steps
from multispec.protocols import Context, Drafter, DraftSession, JoinableDrafts, Request, Target, TargetSession
from multispec.queue import Queue, capacity_of
from multispec.report import NO_PACE, Clock, Pace
from multispec.row import Outcome, Row
from multispec.stream import Draft, Step


def rounds(
    target: Target, rows: Sequence[Row], clock: Clock, queue: Queue | None = None
) -> Iterator[list[Step]]:
    """Generate: yields the symbols that each round commits. Rows end up in ``rows`` themselves.

    All run at once, or as the ``queue`` that they wait in lets them: a turn is a round of all rows that run,
    or the prompts of rows that come in.
    """
    queue, drafting = queue or Queue(target, rows), Drafting(target)
    live: list[Row] = []
    pace = NO_PACE
    while live or queue.waiting:
        with clock.measure("total"), torch.inference_mode():
            new, scores = admit(queue, drafting, live, clock)
            if new:
                live, drafts = [*live, *new], {row.number: Draft.empty() for row in new}
            else:
                with clock.measure("draft"):
                    drafts = drafting.propose(live, pace)
                with clock.measure("verify"):
                    scores = score(queue.session, live, drafts)
            turn = new or live
            outcomes = verify(turn, drafts, scores)
            commit(queue.session, drafting, turn, drafts, outcomes, scores)
            steps = [step for row in turn for step in row.steps(len(outcomes[row.number].emitted))]
            live = retire(queue.session, drafting, live)
        lap = clock.lap(max(map(len, drafts.values())))
        pace = pace if new else lap
        for row in turn:
            row.close(clock)
        yield steps


def admit(
    queue: Queue, drafting: Drafting, live: Sequence[Row], clock: Clock
) -> tuple[list[Row], dict[int, Tensor]]:
    """Let in the rows that have room: they, and what follows their prompts."""
    rows = queue.next(live)
    if not rows:
        return [], {}
    with clock.measure("prefill"), memory_for(lambda: f"the prompts of {len(rows)} rows"):
        scores = queue.admit(rows, live, clock)
    if not scores:
        return [], {}
    with clock.measure("draft"):
        drafting.join(rows, queue.session)
    return rows, scores


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


def retire(session: TargetSession, drafting: Drafting, live: Sequence[Row]) -> list[Row]:
    """Rows that go on; the others leave the batch."""
    done = [row for row in live if row.finish_reason is not None]
    if done:
        # Drafters first: they may ask the session where a row is.
        drafting.end(done)
        session.drop([row.number for row in done])
    return [row for row in live if row.finish_reason is None]


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

    def __init__(self, target: Target) -> None:
        self._target = target
        self._session: TargetSession | None = None
        self._sessions: list[tuple[DraftSession, set[int]]] = []
        # By drafter: sessions that may take in rows that join.
        self._open: dict[int, JoinableDrafts] = {}

    def join(self, rows: Sequence[Row], session: TargetSession) -> None:
        """Begin to draft for new rows of a session of the target."""
        self._session = session
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
            capacity={row.number: capacity_of(row) for row in members},
            vocab_size=self._target.spec.vocab_size,
            device=self._target.device,
            specs={row.number: row.spec for row in members},
            trees=self._target.capabilities.supports_tree and self._target.spec.step == 1,
            target=self._target,
            session=self._session,
        )
        try:
            session, calls = self._opened(drafter, context)
        except MultispecError:
            raise  # a pair that cannot work is the user's to know at once
        except Exception as error:
            self._open.pop(id(drafter), None)
            self._set_aside(members, error)
            return
        numbers = {row.number for row in members}
        shared = [others for other, others in self._sessions if other is session]
        if shared:
            shared[0].update(numbers)
        else:
            self._sessions.append((session, numbers))
        for row in members:
            row.report.draft_calls += session.calls - calls

    def _opened(self, drafter: Drafter, context: Context) -> tuple[DraftSession, int]:
        """The session that is under way, where it takes these rows in, else another; its calls before."""
        known = self._open.get(id(drafter))
        if known is not None:
            calls = known.calls
            if known.join(context):
                return known, calls
        session = drafter.begin(context)
        if isinstance(session, JoinableDrafts):
            self._open[id(drafter)] = session
        return session, 0

    def propose(self, live: Sequence[Row], pace: Pace) -> dict[int, Draft]:
        """A checked draft for every row; empty where there is nothing to draft."""
        drafts = {row.number: Draft.empty() for row in live}
        wanted = ((row.number, row.request(len(live), pace)) for row in live)
        asked = {number: request for number, request in wanted if request is not None}
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
        broken = [id(session) for session, members in self._sessions if members & numbers]
        self._open = {key: session for key, session in self._open.items() if id(session) not in broken}
        for _, members in self._sessions:
            members -= numbers
        self._close()
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
        self._close()

    def _close(self) -> None:
        # A session that nobody uses any more gives its cache back.
        self._sessions = [(session, members) for session, members in self._sessions if members]
