"""As fast as plain decoding at least: which drafter, how much, or none, from what rounds cost and gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

from multispec.errors import UsageError
from multispec.policies.costs import CostTable
from multispec.policies.estimates import Acceptance, Line
from multispec.protocols import Budget, Past

# Positions with a rate of their own; those behind share one.
_PLACES = 9
# What a drafted symbol is taken to cost before it is measured, as a share of a plain round.
_VERIFIED, _DRAFTED = 0.02, 0.1
_BELIEF = 0.7
_BELIEF_WINDOW = 2.0
# Rounds between two tries of what is not in use: at first, and at most.
_SOON, _LATE, _LATEST = 16, 64, 2048
# The share of the time that tries may lose.
_TRYING_SHARE = 0.02
_TRY, _TRY_WINDOW = 2, 4
# What is in use stays unless something else is better by this factor.
_LOYALTY = 1.03
# Less than this beside plain decoding is not worth the risk.
_PAYS = 1.03
# A drafter that becomes slow has to be noticed soon.
_KEEP_DRAFTS = 0.8
_SETTLED = 16
# What an earlier request showed counts as much as so many rounds of this one.
_DOUBTED = 4.0
_EVERY = 4


class Candidate(NamedTuple):
    """A drafter that ``Budget.drafter`` numbers: its name and its own length in symbols (0: the default).

    ``elastic`` says that its length may change from round to round. A window that comes nearer to its fixed
    point with every pass has to keep its length, and takes part once for each length.
    """

    name: str = "drafter"
    drafter: int = 0
    size: int = 0
    elastic: bool = True


class Choice(NamedTuple):
    """Draft ``nodes`` steps in the way of that candidate; 0 are plain decoding."""

    candidate: int
    nodes: int


class _Arm(NamedTuple):
    """What is known of one candidate: acceptance, seconds for a draft, and how its drafts look."""

    acceptance: Acceptance
    draft: Line
    # Nodes for each symbol asked for; below 1 where it often has nothing to say.
    share: float = 1.0
    # Mean steps accepted, where a rate for each position does not tell: windows, trees.
    mean: float | None = None

    def seconds(self, nodes: int, verify: Line) -> float:
        """What a round is expected to take in which so many steps are asked for."""
        drafted = self.share * nodes
        return verify.at(drafted) + self.draft.at(drafted)


class _State(NamedTuple):
    """Everything that is known, the choice that is in use, and what was asked for in the last round."""

    arms: tuple[_Arm, ...]
    verify: Line
    chosen: Choice
    asked: Choice
    tries: tuple[Choice, ...]
    gap: int = _SOON
    due: int = _SOON
    next_try: int = 0
    rates: tuple[float, ...] = ()
    # Rounds that have to lie between two tries as costly as the last one.
    pause: int = 0


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Maximise expected symbols per second over drafters, lengths and plain decoding, as rounds go by.

    With c_j the chance that position j is accepted where those before it were, a draft of n symbols is
    expected to emit 1 + sum_i prod_{j <= i} c_j (Leviathan et al. 2023, equation 1, for rates that depend on
    the position), and to cost the seconds of a draft of n and of a pass over n + 1. For trees and windows
    the mean of what was accepted takes the place of that sum. All of it is estimated from the rounds of this
    row and fades with ``keep`` a round; ``costs`` (``measure_costs``) says what passes cost before any was
    timed. Each of the ``candidates`` is tried once at first, unless an earlier request has ``learned`` what
    they are worth: its last ``Past.memory``. What is not in use is tried again for two rounds
    (windows: four) after 16, 32, then 64 rounds, later where that would cost much, so that it is noticed when
    a text changes its character.

    Where nobody measures time, it is the first candidate at its own length.

    Never looks at the symbols of the coming round. Rows of a batch decide for themselves, each as if the
    others drafted as much as it does.

    Raises:
        UsageError: no candidates, a length or number below 0, ``keep`` outside (0, 1).

    >>> Auto().budget(Past(), 10).nodes
    10
    """

    name: ClassVar[str] = "auto"
    paper: ClassVar[str] = "Leviathan et al. 2023, arXiv 2211.17192, section 3"
    candidates: Sequence[Candidate] = (Candidate(),)
    costs: CostTable | None = None
    keep: float = 0.92
    learned: object = None

    def __post_init__(self) -> None:
        sound = self.candidates and all(one.size >= 0 and one.drafter >= 0 for one in self.candidates)
        if not sound or not 0 < self.keep < 1:
            raise UsageError(
                "auto needs one candidate or more, with a size >= 0 and a number >= 0 each, and keep in "
                f"(0, 1): got {self.candidates} and keep={self.keep}."
            )

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """What is expected to be fastest, or what has to be tried."""
        sizes = _sizes(tuple(self.candidates), past.step, default_nodes)
        if not past.seconds > 0 and not self._experienced:
            return Budget(nodes=sizes[0] * past.step, drafter=self.candidates[0].drafter, memory=past.memory)
        state = past.memory
        known = self._learned(state, past) if isinstance(state, _State) else self._begun(sizes, past)
        state, note = self._decided(known, sizes, past)
        candidate, nodes = state.asked
        drafter = self.candidates[candidate].drafter
        return Budget(nodes=nodes * past.step, drafter=drafter, memory=state, note=note)

    @property
    def _experienced(self) -> bool:
        return isinstance(self.learned, _State) and len(self.learned.arms) == len(self.candidates)

    def _begun(self, sizes: Sequence[int], past: Past) -> _State:
        if isinstance(self.learned, _State) and self._experienced:
            return _resumed(self.learned)
        verify = Line.begun(_VERIFIED)
        if self.costs is not None:
            for nodes in range(0, self.costs.nodes + 1, 4):
                verify = verify.seen(nodes, self.costs.at(past.rows, nodes), self.keep)
        arms = [
            _Arm(
                Acceptance.begun(_BELIEF, _PLACES),
                Line.begun(_DRAFTED),
                mean=None if one.elastic else _BELIEF_WINDOW,
            )
            for one in self.candidates
        ]
        firsts = [self._try(number, size) for number, size in enumerate(sizes)]
        plain = () if verify.known else (Choice(0, 0),)
        tries = (*firsts[0], *plain, *(one for first in firsts[1:] for one in first))
        state = _State(tuple(arms), verify, firsts[0][0], firsts[0][0], tries)
        # Before anything was timed, the first of them was asked for already.
        return self._learned(state._replace(tries=tries[1:]), past) if past.last_nodes else state

    def _try(self, candidate: int, nodes: int, rounds: int = 1) -> tuple[Choice, ...]:
        """A window needs some rounds to show what it can do."""
        return (Choice(candidate, nodes),) * (rounds if self.candidates[candidate].elastic else _TRY_WINDOW)

    def _learned(self, state: _State, past: Past) -> _State:
        """The state with what the last round showed."""
        verify = state.verify
        if past.rounds > 2:  # the first round after the prompt is slower than any other
            verify = verify.seen(past.widest // past.step, past.seconds - past.draft_seconds, self.keep)
        number, nodes = state.asked
        if not nodes or not past.last_nodes:
            return state._replace(verify=verify)
        arm = _drafted(state.arms[number], past, self.keep)
        arms = (*state.arms[:number], arm, *state.arms[number + 1 :])
        return state._replace(verify=verify, arms=arms)

    def _decided(self, state: _State, sizes: Sequence[int], past: Past) -> tuple[_State, str]:
        """The state with what to ask for next, and why where that is news."""
        if state.tries:
            return state._replace(asked=state.tries[0], tries=state.tries[1:]), ""
        if state.due <= 0:
            return self._trying(state, sizes), ""
        note = ""
        if past.rounds < _SETTLED or past.rounds % _EVERY == 0 or not state.rates:
            before, state = state, self._chosen(state, sizes)
            note = self._why(before, state, past)
        return state._replace(asked=state.chosen, due=state.due - 1), note

    def _chosen(self, state: _State, sizes: Sequence[int]) -> _State:
        """The best choice by what is known; a change brings the next try forward."""
        found = [_best(*one, state.verify) for one in zip(state.arms, sizes, strict=True)]
        plain = 1 / state.verify.at(0)
        rates = tuple(rate / plain for _, rate in found)
        own, nodes = state.chosen
        top = max(range(len(found)), key=rates.__getitem__)
        used = rates[own] if nodes else 0.0
        if max(rates[top], used) <= (1.0 if nodes else _PAYS):
            best = Choice(own, 0)
        elif nodes and rates[top] < _LOYALTY * used:
            best = Choice(own, found[own][0])
        else:
            best = Choice(top, found[top][0])
        if best.candidate == own and bool(best.nodes) == bool(nodes):
            return state._replace(chosen=best, rates=rates)
        return state._replace(chosen=best, rates=rates, gap=_SOON, due=_SOON)

    def _trying(self, state: _State, sizes: Sequence[int]) -> _State:
        """Some rounds with what is not in use, the longer apart the oftener it has lost."""
        own, nodes = state.chosen
        others = [number for number in range(len(sizes)) if number != own or not nodes]
        gap = min(2 * state.gap, _LATE)
        if not others:
            return state._replace(asked=state.chosen, gap=gap, due=gap)
        number = others[state.next_try % len(others)]
        length, rate = _best(state.arms[number], sizes[number], state.verify)
        first, *rest = tries = self._try(number, length, _TRY)
        pause, following = self._pause(state, first, rate) * len(tries), state.next_try + 1
        state = state._replace(asked=first, tries=tuple(rest), next_try=following, pause=pause)
        return state._replace(gap=gap, due=max(gap, pause))

    def _pause(self, state: _State, tried: Choice, rate: float) -> int:
        """Rounds in which what a round of trying loses is a small share of the time."""
        plain = state.verify.at(0)
        taken = state.arms[tried.candidate].seconds(tried.nodes, state.verify) / plain
        used = max(state.rates[state.chosen.candidate], 1.0) if state.rates else 1.0
        lost = taken * max(1 - rate * plain / used, 0.0)
        return min(int(lost / _TRYING_SHARE), _LATEST)

    def _why(self, before: _State, now: _State, past: Past) -> str:
        """What was chosen, and what the others would give; empty where nothing changed that matters."""
        (old, fewer), (new, more) = before.chosen, now.chosen
        switched = new != old or bool(more) != bool(fewer)
        resized = max(more, fewer) >= 2 * max(min(more, fewer), 1)
        if before.rates and not switched and not resized:
            return ""
        return explained([one.name for one in self.candidates], now.chosen, now.rates, past.step)


def _resumed(state: _State) -> _State:
    """What another request ended with, a little doubted: a try is due soon, where it does not cost much."""
    arms = tuple(
        one._replace(acceptance=one.acceptance.doubted(_DOUBTED), draft=one.draft.doubted(_DOUBTED))
        for one in state.arms
    )
    verify, due = state.verify.doubted(_DOUBTED), min(state.due, max(state.pause, _SOON))
    return state._replace(arms=arms, verify=verify, rates=(), gap=_SOON, due=due)


def explained(names: Sequence[str], chosen: Choice, rates: Sequence[float], step: int = 1) -> str:
    """A choice in words, with what every way is expected to give beside plain decoding.

    >>> explained(("a", "b"), Choice(1, 4), (1.25, 2.0))
    'b, 4 symbols: 2.00x plain expected (a 1.25x)'
    >>> explained(("a",), Choice(0, 0), (0.8,))
    'plain (a 0.80x)'
    """
    used = chosen.candidate if chosen.nodes else -1
    others = ", ".join(f"{names[n]} {rate:.2f}x" for n, rate in enumerate(rates) if n != used)
    beside = f" ({others})" if others else ""
    if used < 0:
        return f"plain{beside}"
    return f"{names[used]}, {chosen.nodes * step} symbols: {rates[used]:.2f}x plain expected{beside}"


def _drafted(arm: _Arm, past: Past, keep: float) -> _Arm:
    """What is known of a candidate, with the draft that it was asked for."""
    asked = max(past.last_nodes // past.step, 1)
    draft = arm.draft
    if past.rounds > 2:
        draft = draft.seen(past.widest // past.step, past.draft_seconds, _KEEP_DRAFTS)
    share = keep * arm.share + (1 - keep) * past.last_drafted / past.last_nodes
    mean, kept = arm.mean, float(past.last_kept)
    if mean is not None:
        # Windows get better while they are in use: the last rounds count most.
        mean = 0.8 * mean + 0.2 * kept
    elif past.last_drafted > past.last_depth * past.step:
        mean = kept
    return _Arm(arm.acceptance.counted(asked, past.last_kept, keep), draft, share, mean)


def _best(arm: _Arm, own: int, verify: Line) -> tuple[int, float]:
    """(length in steps, steps per second) of the best draft in this way."""
    if arm.mean is not None:
        return own, (1 + arm.mean) / arm.seconds(own, verify)
    best, most = own, 0.0
    expected, accepted, place = 1.0, 1.0, 0
    rates = arm.acceptance.rates
    for nodes in _lengths(own):
        while place < nodes:
            accepted *= rates[min(place, _PLACES - 1)]
            expected, place = expected + accepted, place + 1
        rate = expected / arm.seconds(nodes, verify)
        if rate > most:
            best, most = nodes, rate
    return best, most


@lru_cache(maxsize=64)
def _lengths(own: int) -> tuple[int, ...]:
    """Lengths to choose from: dense at first, up to twice what the drafter drafts by itself."""
    limit = max(2 * own, 8)
    usual = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256)
    return tuple(sorted({own, *(n for n in usual if n <= limit)}))


@lru_cache(maxsize=64)
def _sizes(candidates: tuple[Candidate, ...], step: int, default_nodes: int) -> tuple[int, ...]:
    """Each one's own length, in steps."""
    return tuple(max((one.size or default_nodes) // step, 1) for one in candidates)
