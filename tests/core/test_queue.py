"""Prompts that wait: rows join and leave between rounds, within a width and a memory, and nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from multispec.asking import Asked, Methods, batch_of
from multispec.branches import GuidedSession
from multispec.drafters import DraftModel, Jacobi, PromptLookup, SkipLayers
from multispec.errors import DrafterWarning, GenerationError, PromptError, UsageError
from multispec.generator import Generator
from multispec.guidance import Guidance
from multispec.modality import IdsOnly
from multispec.protocols import Context, Drafter, DraftSession, Request, Target, TargetSession
from multispec.queue import Limits, cache_bytes
from multispec.row import Row
from multispec.sampling import Sampling
from multispec.stream import Draft, Generation, Observation, Prompt
from multispec.targets import target_for
from multispec.targets.parallel_slots import ParallelSlotsSession
from multispec.targets.ragged import RaggedSession
from multispec.testing import FakeModel, SlotTableModel, TableModel
from tests.core.two_levels import Tiny
from tests.models import test_llamagen, test_musicgen, zoo

# Prompts in a queue (fewer where the passes of a model are slow), and how many run at once.
COUNT, FEW, WIDTH = 20, 8, 3
pytestmark = pytest.mark.usefixtures("unchecked")
Make = Callable[[int], Prompt]


def ids_of(number: int, size: int = 40) -> list[int]:
    """Prompts of 1 to 7 symbols, none like another."""
    return [(3 + 5 * number + 7 * place) % size for place in range(1 + (3 * number) % 7)]


@dataclass(frozen=True, eq=False)
class Case:
    """A target, its prompts, and the drafters that it can do with."""

    target: Target
    prompt: Make
    drafters: dict[str, Drafter | None]
    step: int = 1
    count: int = COUNT
    alone: dict[int, Generation] = field(default_factory=dict)

    def settings(self, number: int) -> dict[str, Any]:
        """Seeds of their own, ragged lengths, and a stop now and then."""
        longest = (4 + (5 * number) % 9) * self.step
        return {"sampling": Sampling(seed=number, temperature=0.9), "max_new_tokens": longest}

    def by_itself(self, number: int) -> Generation:
        """What a prompt gives alone and without drafts, computed once."""
        if number not in self.alone:
            given = Generator(self.target)
            asked = self.settings(number)
            self.alone[number] = given.generate([self.prompt(number)], drafter=None, **asked)[0]
        return self.alone[number]

    def rows(self, drafter: Drafter | None = None) -> list[Row]:
        """The rows of ``queued``, before anything has run."""
        each = [self.settings(number) for number in range(self.count)]
        asked: dict[str, Any] = {name: [one[name] for one in each] for name in each[0]}
        prompts = [self.prompt(number) for number in range(self.count)]
        methods = Methods(target=self.target)
        return batch_of(self.target, IdsOnly(), methods, prompts, Asked(drafter=drafter, **asked)).rows

    def queued(self, drafter: Drafter | None, **more: Any) -> list[Generation]:
        """All prompts through a queue."""
        each = [self.settings(number) for number in range(self.count)]
        lists = {name: [one[name] for one in each] for name in each[0]}
        prompts = [self.prompt(number) for number in range(self.count)]
        found: list[Generation] = Generator(self.target).generate(
            prompts, drafter=drafter, policy=None, **{"batch_size": WIDTH, **lists, **more}
        )
        return found


def of_ids(number: int) -> Prompt:
    return Prompt(ids=torch.tensor(ids_of(number)))


def guided(number: int) -> Prompt:
    """Every other row has a second branch, of another length."""
    prompt = of_ids(number)
    other = Prompt(ids=prompt.ids[-1:])
    return replace(prompt, guidance=Guidance(scale=2.0), unconditional=other) if number % 2 else prompt


def captioned(number: int) -> Prompt:
    """A caption of a picture, with guidance."""
    family = test_llamagen.family(text=True)
    prompt = family.featured(*test_llamagen.caption(number, 1 + number % test_llamagen.ROOM))
    return replace(prompt, guidance=Guidance(scale=2.5), unconditional=family.unconditional(prompt, None))


def sung(number: int) -> Prompt:
    """A text for a song: encoder states of several lengths, some rows guided."""
    return test_musicgen.guided("plain", " ".join(["drums"] * (1 + number % 4)), 3.0 if number % 3 else 1.0)


@cache
def models(name: str) -> dict[str, Drafter | None]:
    near = DraftModel(target_for(zoo.shared(name, 1)), 3)
    return {"plain": None, "lookup": PromptLookup(), "model": near}


def table() -> Case:
    near = DraftModel(TableModel(40, seed=1, scale=1.2, strict=False), 3)
    drafters: dict[str, Drafter | None] = {"plain": None, "lookup": PromptLookup(), "model": near}
    return Case(TableModel(40, seed=1), of_ids, drafters)


def ragged() -> Case:
    skipping = SkipLayers(attention=(1,), mlp=(1,), num_draft_tokens=2)
    return Case(target_for(zoo.shared("llama")), of_ids, {**models("llama"), "self": skipping})


def sliding() -> Case:
    return Case(target_for(zoo.shared("gemma2")), of_ids, models("llama"), count=FEW)


def recurrent() -> Case:
    return Case(target_for(zoo.shared("lfm2")), of_ids, models("lfm2"), count=FEW)


def encoded() -> Case:
    return Case(
        target_for(zoo.shared("t5")), lambda number: zoo.prompt("t5", ids_of(number)), models("t5"), count=FEW
    )


def branches() -> Case:
    return Case(target_for(zoo.shared("llama")), guided, models("llama"))


def pictures() -> Case:
    return Case(
        test_llamagen.family(text=True).target,
        captioned,
        {"plain": None, "jacobi": Jacobi(num_draft_tokens=4)},
    )


def slots() -> Case:
    prompts = [Prompt(ids=torch.tensor([n % 3, (n + 1) % 3] * (1 + n % 2))) for n in range(COUNT)]
    return Case(
        SlotTableModel(), prompts.__getitem__, {"plain": None, "jacobi": Jacobi(num_draft_tokens=4)}, step=2
    )


def songs() -> Case:
    target = test_musicgen.family_of("plain").target
    return Case(target, sung, {"plain": None, "lookup": PromptLookup(num_draft_tokens=8)}, step=4, count=FEW)


def frames() -> Case:
    tiny = Tiny(scale=1.0)
    near = DraftModel(TableModel(3, order=2, seed=5, spec=tiny.spec, strict=False), 4)
    drafters: dict[str, Drafter | None] = {"plain": None, "lookup": PromptLookup(), "model": near}
    prompts = [Prompt(ids=torch.tensor(ids_of(number, 3))) for number in range(COUNT)]
    return Case(tiny.target(), prompts.__getitem__, drafters)


CASES: dict[str, Callable[[], Case]] = {
    "table": table,
    "ragged": ragged,
    "sliding": sliding,
    "recurrent": recurrent,
    "encoder_decoder": encoded,
    "guided": branches,
    "pictures": pictures,
    "slots": slots,
    "songs": songs,
    "two_level": frames,
}


@cache
def case(name: str) -> Case:
    return CASES[name]()


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Callable[[Target], list[Any]]:
    """Lists the sessions that a target begins from now on."""

    def watch(target: Any) -> list[Any]:
        found: list[Any] = []
        begin = target.begin

        def begun(*given: Any) -> TargetSession:
            session: TargetSession = begin(*given)
            found.append(session)
            return session

        monkeypatch.setattr(target, "begin", begun)
        return found

    return watch


# ---- exactness ----


@pytest.mark.parametrize("name", CASES)
def test_a_queue_gives_what_each_prompt_gives_alone(
    name: str, sessions: Callable[[Target], list[Any]]
) -> None:
    """Three at once, by every drafter: the same symbols, whoever was in the batch; one session for all."""
    one = case(name)
    alone = [one.by_itself(number) for number in range(one.count)]
    begun = sessions(one.target)
    for drafter in one.drafters.values():
        begun.clear()
        found = one.queued(drafter)
        assert [a.tokens.tolist() for a in found] == [b.tokens.tolist() for b in alone]
        assert [a.finish_reason for a in found] == [b.finish_reason for b in alone]
        assert not any(a.report.drafter_failures for a in found)
        assert drafter is None or sum(a.report.drafted for a in found) > 0
        assert len(begun) == 1


def test_rejection_draws_what_it_draws_alone() -> None:
    """Its noise is the row's own, so sampled drafts give the same symbols in a queue: the law is the same."""
    one = case("table")
    drafter = one.drafters["model"]
    found = one.queued(drafter, verifier="rejection")
    for number, row in enumerate(found):
        asked = {**one.settings(number), "drafter": drafter, "policy": None, "verifier": "rejection"}
        alone = Generator(one.target).generate([one.prompt(number)], **asked)[0]
        assert row.tokens.tolist() == alone.tokens.tolist()
        assert row.report.histogram == alone.report.histogram


def test_rows_that_stop_make_room() -> None:
    """Stops and ends at any place, ragged lengths, settings per row: as alone, and never more than three."""
    target = TableModel(40, seed=1, end_ids=(7, 8))
    prompts = [ids_of(number) for number in range(COUNT)]
    asked: dict[str, Any] = {"policy": None, "drafter": PromptLookup()}
    lengths, seeds = [1 + number % 8 for number in range(COUNT)], [Sampling(seed=n) for n in range(COUNT)]
    found = Generator(target).generate(
        prompts, max_new_tokens=lengths, sampling=seeds, batch_size=WIDTH, **asked
    )
    session = target.sessions[-1]
    assert {len(call.rows) for call in session.calls} == {1, 2, 3} and session.cached == {}
    assert sum(map(len, session.joined)) == COUNT - WIDTH and sorted(session.kept) == list(range(COUNT))
    for n, row in enumerate(found):
        alone = Generator(target).generate(prompts[n], max_new_tokens=lengths[n], sampling=seeds[n], **asked)
        assert (row.tokens.tolist(), row.finish_reason) == (alone.tokens.tolist(), alone.finish_reason)
    assert {row.finish_reason for row in found} == {"stop", "length"}


@dataclass(frozen=True, eq=False)
class Closed:
    """A target whose sessions take nobody in."""

    inner: Target
    begun: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        self.begun.append(len(prompts))
        closed: Any = _Closed(self.inner.begin(prompts, capacity, nodes))
        session: TargetSession = closed
        return session


class _Closed:
    """A session without ``join``."""

    def __init__(self, session: Any) -> None:
        for name in "prefill score commit extend walk checkpoint rewind length drop".split():
            setattr(self, name, getattr(session, name))


def test_what_cannot_join_runs_in_waves() -> None:
    """A target and a draft model without ``join``: batches one after the other, the same symbols."""
    one = case("table")
    target: Any = Closed(one.target)
    near = Closed(TableModel(40, seed=1, scale=1.2, strict=False))
    drafter = DraftModel(near, 3)
    found = Case(target, of_ids, {}).queued(drafter)
    assert [a.tokens.tolist() for a in found] == [one.by_itself(n).tokens.tolist() for n in range(COUNT)]
    assert target.begun == near.begun == [3] * 6 + [2]


def test_a_draft_model_that_cannot_join_gets_a_session_for_each_group() -> None:
    one = case("table")
    near = Closed(TableModel(40, seed=1, scale=1.2, strict=False))
    found = one.queued(DraftModel(near, 3))
    assert [a.tokens.tolist() for a in found] == [one.by_itself(n).tokens.tolist() for n in range(COUNT)]
    assert sum(near.begun) == COUNT and len(near.begun) > 5


def test_a_draft_model_takes_new_rows_in() -> None:
    """One session of the draft model for all prompts, whose rows leave with those of the target."""
    one, near = case("table"), TableModel(40, seed=1, scale=1.2, strict=False)
    one.queued(DraftModel(near, 3))
    assert len(near.sessions) == 1 and near.sessions[0].cached == {}
    assert sum(map(len, near.sessions[0].joined)) == COUNT - WIDTH


def test_prompts_of_another_kind_wait_for_an_empty_batch(sessions: Callable[[Target], list[Any]]) -> None:
    """What a prompt brings beside its ids needs the model's own cache: they come in when all are gone."""
    target = case("ragged").target
    begun = sessions(target)
    prompts = [of_ids(number) for number in range(4)]
    places = torch.arange(len(prompts[2].ids))[None]
    prompts[2] = replace(prompts[2], conditioning={"position_ids": places})
    asked: dict[str, Any] = {"drafter": None, "max_new_tokens": 4, "sampling": Sampling(seed=2)}
    found = Generator(target).generate(prompts, batch_size=2, **asked)
    assert [type(session).__name__ for session in begun] == ["RaggedSession", "RowwiseSession"]
    alone = [Generator(target).generate(prompt, **asked) for prompt in prompts]
    assert [a.tokens.tolist() for a in found] == [b.tokens.tolist() for b in alone]


# ---- memory ----


def of(session: Any) -> RaggedSession:
    inner = session.inner if isinstance(session, GuidedSession) else session
    assert isinstance(inner, RaggedSession)
    return inner


def test_places_are_used_again(sessions: Callable[[Target], list[Any]]) -> None:
    """The cache has as many places as rows at once, each for the longest row, whoever came and went."""
    one = case("ragged")
    begun = sessions(one.target)
    one.queued(None)
    cache = of(begun[0]).cache
    longest = max(len(ids_of(n)) + one.settings(n)["max_new_tokens"] for n in range(one.count))
    assert {layer.places for layer in cache.ragged} == {WIDTH} and cache.ledger.lengths == []
    assert cache.ledger.capacity == longest + 258


SIZED = ["ragged", "guided", "pictures", "songs", "two_level", "recurrent", "encoder_decoder"]


@pytest.mark.parametrize("name", SIZED)
def test_memory_holds_rows_back(name: str, sessions: Callable[[Target], list[Any]]) -> None:
    """Room for two of the largest rows: what is allocated stays below, and nothing else changes."""
    one = case(name)
    memory = 2 * max(cache_bytes(one.target, row) for row in one.rows())
    begun = sessions(one.target)
    found = one.queued(None, max_memory=memory, batch_size=None)
    assert [a.tokens.tolist() for a in found] == [one.by_itself(n).tokens.tolist() for n in range(one.count)]
    inner = begun[0].inner if isinstance(begun[0], GuidedSession) else begun[0]
    if isinstance(inner, (RaggedSession, ParallelSlotsSession)):
        assert memory / 4 < inner.cache.allocated <= memory
    assert found[0].report.waited == 0 < found[-1].report.waited


@pytest.mark.parametrize("name", ["ragged", "sliding", "pictures"])
def test_a_row_takes_what_was_estimated(name: str, sessions: Callable[[Target], list[Any]]) -> None:
    """The estimate is what a session over that row alone allocates."""
    one = case(name)
    row = one.rows()[3]
    prompt = replace(row.settings.prompt, guidance=None, unconditional=None)
    row.settings = replace(row.settings, prompt=prompt)
    estimate = cache_bytes(one.target, row)
    begun = sessions(one.target)
    Generator(one.target).generate([prompt], drafter=None, **one.settings(3))
    assert of(begun[0]).cache.allocated == estimate


def test_as_many_rows_run_as_fit() -> None:
    """Eight bytes a symbol in a table model: short rows run side by side, a long one keeps others out."""
    target = TableModel(40, seed=1)
    lengths = [4, 4, 4, 300, 4, 4, 4]
    room = 8 * (1 + 300 + 256)
    found = Generator(target).generate(
        [[1]] * 7, drafter=None, max_new_tokens=lengths, max_memory=room + 7, sampling=Sampling(seed=4)
    )
    assert [len(row.tokens) for row in found] == lengths
    assert {call.rows for call in target.sessions[-1].calls} == {(0, 1), (2,), (3,), (4, 5), (6,)}


def test_the_draft_model_counts_too() -> None:
    """Its cache is a part of what a row takes."""
    target, near = TableModel(40, seed=1), DraftModel(TableModel(40, strict=False), 3)
    plain, drafted = (
        [cache_bytes(target, row) for row in Case(target, of_ids, {}).rows(drafter)]
        for drafter in (None, near)
    )
    assert all(two >= 2 * one for one, two in zip(plain, drafted, strict=True))


def test_a_row_that_is_too_large_is_refused_before_anything_runs() -> None:
    target = TableModel(40, seed=1)
    generator = Generator(target)
    for run in (generator.generate, generator.stream):
        with pytest.raises(UsageError, match="caches of row 1 take 5,656 bytes .* max_memory is 4,000"):
            run([[1], [2]], max_new_tokens=[8, 450], max_memory="4KB", drafter=None)
    assert not target.sessions


class Blind(Closed):
    """A target that does not know what its rows take."""

    def __getattr__(self, name: str) -> Any:
        if name == "cache_bytes":
            raise AttributeError(name)
        return getattr(self.inner, name)


def test_a_target_that_knows_no_sizes() -> None:
    target: Any = Blind(TableModel(40, seed=1))
    with pytest.raises(UsageError, match="Blind has none.*batch_size"):
        Generator(target).generate([[1], [2]], max_memory="1GiB")
    near = DraftModel(target, 2)
    with pytest.raises(UsageError, match="draft model's cache too, and Blind"):
        Generator(TableModel(40)).generate([[1]], drafter=near, max_memory="1GiB")


@pytest.mark.parametrize("wrong", [0, -3, 1.5, "4", True])
def test_widths_that_are_none(wrong: Any) -> None:
    with pytest.raises(UsageError, match="batch_size is how many prompts run at once"):
        Generator(TableModel(40)).generate([[1]], batch_size=wrong)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "lots", "2 xib", "ib", "0"])
def test_amounts_that_are_none(wrong: Any) -> None:
    with pytest.raises(UsageError, match="max_memory is a number of bytes"):
        Generator(TableModel(40)).generate([[1]], max_memory=wrong)


@pytest.mark.parametrize(
    ("asked", "memory"),
    [(12, 12), ("12", 12), ("2GiB", 2**31), ("500 mb", 500 * 10**6), ("1.5k", 1500), ("3 KiB", 3072)],
)
def test_amounts_of_memory(asked: Any, memory: int) -> None:
    assert Limits.of(None, asked).memory == memory


# ---- what goes wrong half-way ----


def failing(number: int, error: BaseException, strict: bool = True) -> FakeModel:
    """A table model that raises behind the third symbol of a prompt that begins with ``number``."""
    inner = TableModel(40, seed=1)

    def after(prefix: Sequence[int], prompt_length: int) -> Tensor:
        if prefix[0] == number and len(prefix) - prompt_length == 3:
            raise error
        return inner.after(prefix, prompt_length)

    return FakeModel(after, inner.spec, strict=strict)


ASKED: dict[str, Any] = {"drafter": None, "max_new_tokens": [2, 9, 9, 9, 9, 9], "batch_size": 2}


def partly(found: Sequence[Generation]) -> None:
    """Row 0 is done, rows 1 and 2 were under way, the others waited."""
    plain = Generator(TableModel(40, seed=1)).generate([[n] for n in range(6)], **ASKED)
    made = [row.tokens.tolist() for row in found]
    assert [len(ids) for ids in made] == [2, 4, 3, 0, 0, 0]
    assert all(row.tokens.tolist()[: len(ids)] == ids for row, ids in zip(plain, made, strict=True))
    assert [row.finish_reason for row in found] == ["length", *["interrupted"] * 5]
    assert all(row.report.waited > 0 and row.report.clock.total == 0 for row in found[3:])
    assert found[1].report.waited == 0 < found[1].report.clock.total


def test_an_error_keeps_what_was_made() -> None:
    """One Generation per prompt: done, partial, and empty for those that waited."""
    with pytest.raises(GenerationError, match="broke after 4 symbols: OSError: gone") as error:
        Generator(failing(2, OSError("gone"))).generate([[n] for n in range(6)], **ASKED)
    partly(error.value.partial)


def test_ctrl_c_keeps_what_was_made() -> None:
    partly(Generator(failing(2, KeyboardInterrupt())).generate([[n] for n in range(6)], **ASKED))


def test_a_prompt_that_cannot_be_run_costs_nobody_else() -> None:
    """An error of ours about a later row: rows that are done are in ``partial``."""
    target = Tiny(positions=8).target()
    asked: dict[str, Any] = {"max_new_tokens": 8, "batch_size": 1, "drafter": None}
    with pytest.raises(GenerationError, match="PromptError: .* holds 8 positions") as error:
        Generator(target).generate([[1, 2], [1] * 7], **asked)
    assert [row.report.new_tokens for row in error.value.partial] == [8, 0]
    with pytest.raises(PromptError, match="holds 8 positions"):
        Generator(target).generate([[1] * 7, [1, 2]], **asked)


@dataclass(frozen=True, eq=False)
class Sometimes:
    """Drafts the last symbol again; sessions that hold row ``broken`` raise."""

    name: ClassVar[str] = "sometimes"
    broken: int
    num_draft_tokens: int = 2
    begun: list[tuple[int, ...]] = field(default_factory=list)

    def begin(self, context: Context) -> DraftSession:
        self.begun.append(tuple(context.prompts))
        return _Sometimes(self.broken in context.prompts)


class _Sometimes:
    calls = 0

    def __init__(self, broken: bool) -> None:
        self._broken = broken

    def propose(self, requests: Sequence[Request]) -> list[Draft]:
        if self._broken:
            raise ValueError("no more")
        return [Draft.chain(request.history.ids[-1:]) for request in requests]

    def observe(self, row: int, observation: Observation) -> None:
        pass

    def end(self, rows: Sequence[int]) -> None:
        pass


def test_a_drafter_that_fails_for_one_group() -> None:
    """Rows that joined together go on plainly; those of other groups keep their drafts."""
    one, drafter = case("table"), Sometimes(broken=4)
    with pytest.warns(DrafterWarning, match="ValueError: no more"):
        found = one.queued(drafter)
    assert [a.tokens.tolist() for a in found] == [one.by_itself(n).tokens.tolist() for n in range(COUNT)]
    group = next(rows for rows in drafter.begun if 4 in rows)
    assert sorted(n for rows in drafter.begun for n in rows) == list(range(COUNT))
    assert [n for n, row in enumerate(found) if row.report.drafter_failures] == list(group)
    assert found[0].report.drafted > 0 and found[-1].report.drafted > 0


def test_a_draft_model_that_fails_is_not_joined_any_more() -> None:
    """Its session may be broken: the rows that come next begin another."""
    one, near = case("table"), failing(ids_of(2)[0], OSError("gone"), strict=False)
    with pytest.warns(DrafterWarning, match="OSError: gone"):
        found = one.queued(DraftModel(near, 3))
    assert [a.tokens.tolist() for a in found] == [one.by_itself(n).tokens.tolist() for n in range(COUNT)]
    failed = [n for n, row in enumerate(found) if row.report.drafter_failures]
    assert 2 in failed and len(failed) < COUNT
    assert len(near.sessions) > 1 and found[-1].report.drafted > 0


# ---- streams and reports ----


def test_a_stream_names_the_row_of_every_step() -> None:
    """The symbols of each row in order, three rows at once, and the results of ``generate`` at the end."""
    one = case("table")
    each = [one.settings(number) for number in range(COUNT)]
    stream = Generator(one.target).stream(
        [ids_of(number) for number in range(COUNT)],
        max_new_tokens=[asked["max_new_tokens"] for asked in each],
        sampling=[asked["sampling"] for asked in each],
        batch_size=WIDTH,
    )
    rows: dict[int, list[int]] = {number: [] for number in range(COUNT)}
    most = 0
    for step in stream:
        assert step.position == len(rows[step.row])
        rows[step.row].append(step.token)
        running = [n for n, ids in rows.items() if 0 < len(ids) < each[n]["max_new_tokens"]]
        most = max(most, len(running))
    assert list(rows.values()) == [one.by_itself(n).tokens.tolist() for n in range(COUNT)]
    assert most <= WIDTH
    assert [row.tokens.tolist() for row in stream.result] == list(rows.values())


def test_the_time_of_a_row_begins_when_it_comes_in() -> None:
    """Its seconds are those of the batch while it was in it; before that it waited."""
    reports = [row.report for row in case("table").queued(None)]
    waited = [report.waited for report in reports]
    assert waited == sorted(waited) and waited[:WIDTH] == [0] * WIDTH and waited[WIDTH] > 0
    ends = [report.waited + report.clock.total for report in reports]
    assert all(
        end <= waited[-1] + reports[-1].clock.total or n >= COUNT - WIDTH for n, end in enumerate(ends)
    )
    assert reports[-1].to_dict()["waited"] == waited[-1]
    assert "seconds, waited" in str(reports[-1]) and "seconds, waited" not in str(reports[0])
