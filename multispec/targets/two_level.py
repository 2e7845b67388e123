"""Two-level models: a time model over frames, and a depth model over the codebooks of a frame.

The stream is flat, in (frame, codebook) order. A frame's first symbol is predicted by the time model from
all frames before it, the others by the depth model from the time model's state and the frame's own symbols
(CSM, the talker of Qwen3-Omni, Moshi). Symbol by symbol that is one pass of the time model and K - 1 passes
of the depth model per frame. A draft of several frames costs one pass of the time model over all frames that
it completes, and one teacher-forced pass of the depth model, whose batch rows are those frames.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.cache import RaggedCache
from multispec.errors import PromptError, UnsupportedError
from multispec.protocols import MAX_NODES, Capabilities, Scores, TargetSession
from multispec.stream import Draft, Prompt, StreamSpec
from multispec.targets.masks import Attention, Pass, chain_mask, plan
from multispec.tree import chain_parents


@runtime_checkable
class TimeModel(Protocol):
    """The model over frames: one position per frame, behind those of the prompt."""

    @property
    def layers(self) -> int:
        """How many caches a pass needs."""
        ...

    @property
    def attention(self) -> Attention:
        """The kinds of its layers."""
        ...

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and device that inputs, masks and caches need."""
        ...

    def prompt(self, prompt: Prompt, /) -> Float[Tensor, "S C"]:
        """The inputs of a prompt, one per position."""
        ...

    def frames(
        self, codes: Int[Tensor, "B T K"], first: Sequence[int], prompts: Sequence[Prompt], /
    ) -> Float[Tensor, "B T C"]:
        """The inputs of whole frames: those of row b are the frames from ``first[b]`` on."""
        ...

    def __call__(
        self, inputs: Float[Tensor, "B T C"], step: Pass, cache: RaggedCache, /
    ) -> Float[Tensor, "B T C"]:
        """The state behind each input, writing keys and values into ``cache``."""
        ...

    def head(self, states: Float[Tensor, "n C"], /) -> Float[Tensor, "n V"]:
        """Logits of the first symbol of the frame behind each state."""
        ...


@runtime_checkable
class DepthModel(Protocol):
    """The model over the symbols of one frame. It keeps nothing from frame to frame.

    Entry e of its cache takes the symbol of slot ``e - lead`` and predicts slot ``e - lead + 1``. With
    ``lead`` 1, entry 0 takes the state of the time model alone; with 0, every entry takes it beside a symbol.
    """

    @property
    def layers(self) -> int:
        """How many caches a pass needs."""
        ...

    @property
    def attention(self) -> Attention:
        """The kinds of its layers."""
        ...

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and device that masks and caches need."""
        ...

    @property
    def lead(self) -> int:
        """Entries before the first symbol: 0 or 1."""
        ...

    @property
    def lockstep(self) -> bool:
        """True where all frames of a pass have to stand at the same entry (weights of its own for each)."""
        ...

    def __call__(
        self, states: Float[Tensor, "F C"], codes: Int[Tensor, "F Q"], step: Pass, cache: RaggedCache, /
    ) -> Float[Tensor, "F Q C"]:
        """What ``head`` needs, for every entry of the pass; positions are entries."""
        ...

    def head(self, found: Float[Tensor, "n C"], /, slot: int) -> Float[Tensor, "n V"]:
        """Logits of the symbols of one slot."""
        ...


@dataclass
class Passes:
    """Passes made so far: of the ``time`` model, of the ``depth`` model, and prompts run."""

    time: int = 0
    depth: int = 0
    prompts: int = 0


class TwoLevelTarget:
    """A two-level model behind the core.

    ``positions`` is the most that the time model can hold, prompt and frames together. ``passes`` counts
    over all sessions. Rows of a batch may stand at different places; drafts are chains.

    Raises:
        UnsupportedError: a stream that is not of sequential slots.

    >>> TwoLevelTarget("CSM", time, depth, Levels(...).spec)                            # doctest: +SKIP
    """

    def __init__(
        self,
        name: str,
        time: TimeModel,
        depth: DepthModel,
        spec: StreamSpec,
        positions: int | None = None,
    ) -> None:
        if spec.parallel or len(spec.slots) < 2:
            raise UnsupportedError(
                f"A two-level model needs a stream of two or more sequential slots: {name} got "
                f"{len(spec.slots)} with parallel={spec.parallel}. Use another target for it."
            )
        self.name, self.time, self.depth, self.spec = name, time, depth, spec
        self.positions = positions
        self.context_length: int | None = None
        self.device: torch.device = time.like.device
        self.passes = Passes()
        self._entries: tuple[int, int] | None = None
        why = f"{name} takes the symbols of a draft in (frame, codebook) order, as one chain"
        self.capabilities = Capabilities(supports_tree=False, way="TwoLevel", why=why)

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """Open a session over these prompts.

        Raises:
            PromptError: prompt and frames do not fit into the time model.
        """
        return TwoLevelSession(self, prompts, capacity, nodes)

    @torch.inference_mode()
    def cache_bytes(self, prompt: Prompt, capacity: int, /) -> int:
        """Bytes for a row that may grow to so many symbols, found once by running a prompt.

        A frame of a draft is a row of the depth model's cache.
        """
        slots = len(self.spec.slots)
        if self._entries is None:
            session = TwoLevelSession(self, [prompt], [len(prompt.ids) + slots], 0)
            session.prefill()
            session.extend([0], [0])
            self._entries = session.entry_bytes
        time, depth = self._entries
        frames = -(-(capacity - len(prompt.ids)) // slots)
        positions = len(self.time.prompt(prompt)) + frames + MAX_NODES // slots + 2
        return time * positions + depth * 2 * (slots + self.depth.lead) * (MAX_NODES // slots + 2)

    def refuse_overlong(self, prompt: int, frames: int) -> None:
        """Refuse what the time model has no positions for.

        Raises:
            PromptError: says how many frames are left.
        """
        # The last frame is never run itself.
        if self.positions is not None and prompt + frames - 1 > self.positions:
            slots = len(self.spec.slots)
            raise PromptError(
                f"The time model of {self.name} holds {self.positions} positions: got a prompt of {prompt} "
                f"and {frames} frames. Shorten the prompt, or ask for at most "
                f"{max(self.positions - prompt + 1, 0) * slots} symbols ({slots} per frame)."
            )


@dataclass
class _Row:
    """One row: its generated symbols that have been run, and the states that its frames come from."""

    prompt: Prompt
    start: int = 0  # positions of the prompt in the time model
    room: int = 0  # those of the prompt and all frames
    codes: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)  # state t predicts frame t
    # Of the pass under way: root and draft, and frame -> (row of the depth batch, entries there).
    fed: list[int] = field(default_factory=list)
    frames: dict[int, tuple[int, int]] = field(default_factory=dict)
    line: int = 0  # the first row of the depth batch that is this row's
    held: int = 0  # entries of its frame before the pass


class _Frame(NamedTuple):
    """A frame of a depth pass: of the row at ``place``; runs entries ``start`` to ``end`` - 1."""

    place: int
    number: int
    start: int
    end: int
    first: int  # the first slot whose logits are asked for


class _Wanted(NamedTuple):
    """Logits that a pass has to give: row ``out`` of the answer, from a row and a column of the batch."""

    out: int
    row: int
    column: int


class TwoLevelSession:
    """Rows of one batch. ``passes`` counts passes of both models over the whole batch.

    The cache of the time model holds whole frames. That of the depth model holds the frame that each row
    stands in; a pass over several frames gives it a batch row for each, and the commit keeps one of them.
    """

    def __init__(
        self, target: TwoLevelTarget, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int
    ) -> None:
        self._target, self._time, self._depth = target, target.time, target.depth
        self._slots, self._nodes = len(target.spec.slots), nodes
        self._rows: dict[int, _Row] = {}
        self.rows: list[int] = []
        self._inputs = self._opened(range(len(prompts)), prompts, capacity)
        self.passes = Passes()
        self._times = RaggedCache(self._time.layers, len(prompts), self._room())
        entries = self._slots + self._depth.lead
        self._depths = RaggedCache(self._depth.layers, len(prompts), 2 * entries)

    def _opened(
        self, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int]
    ) -> list[Tensor]:
        """What the time model reads of new prompts."""
        inputs = [self._time.prompt(prompt) for prompt in prompts]
        frames = [
            -(-(room - len(prompt.ids)) // self._slots)
            for prompt, room in zip(prompts, capacity, strict=True)
        ]
        for own, wanted in zip(inputs, frames, strict=True):
            self._target.refuse_overlong(len(own), wanted)
        for row, prompt, own, wanted in zip(rows, prompts, inputs, frames, strict=True):
            self._rows[row] = _Row(prompt, len(own), len(own) + wanted)
        self.rows = [*self.rows, *rows]
        return inputs

    @property
    def entry_bytes(self) -> tuple[int, int]:
        """What an entry of a row takes in the cache of the time model, and in that of the depth model."""
        return self._times.entry_bytes, self._depths.entry_bytes

    def _room(self) -> int:
        # Short rows are padded to the longest draft, so every row needs room for a whole pass.
        return max(row.room for row in self._rows.values()) + self._nodes // self._slots + 2

    def prefill(self) -> Scores:
        """Run all prompts in one pass of the time model."""
        inputs, self._inputs = self._inputs, []
        return self._prefill(self.rows, inputs, self._times)

    def join(self, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int], /) -> Scores:
        """Run the prompts of new rows in one pass of the time model; no depth model has begun with them."""
        place = len(self.rows)
        inputs = self._opened(rows, prompts, capacity)
        added = self._times.add(len(rows), self._room())
        found = self._prefill(rows, inputs, added)
        self._times.ledger.lengths[place:] = added.ledger.lengths
        self._depths.add(len(rows), self._depths.ledger.capacity)
        return found

    def _prefill(self, numbers: Sequence[int], inputs: Sequence[Tensor], cache: RaggedCache) -> Scores:
        padded = torch.nn.utils.rnn.pad_sequence(list(inputs), batch_first=True)
        step = self._plan(self._time, cache, padded.shape[1], numbers, prefill=True)
        states = self._time(padded, step, cache)
        self._count(prompts=1)
        rows = [self._rows[number] for number in numbers]
        last = torch.stack([states[place, row.start - 1] for place, row in enumerate(rows)])
        cache.ledger.lengths = [row.start for row in rows]
        for row, state in zip(rows, last, strict=True):
            row.states = [state]
        out = self._time.like.new_full((len(rows), self._target.spec.vocab_size), -torch.inf)
        logits = self._time.head(last)
        out[:, : logits.shape[-1]] = logits
        return Scores(logits=out.split(1))

    def _count(self, time: int = 0, depth: int = 0, prompts: int = 0) -> None:
        for passes in (self.passes, self._target.passes):
            passes.time += time
            passes.depth += depth
            passes.prompts += prompts

    def _plan(
        self,
        model: TimeModel | DepthModel,
        cache: RaggedCache,
        width: int,
        rows: Sequence[int],
        prefill: bool = False,
    ) -> Pass:
        """Positions and masks of a pass over ``width`` inputs behind what the rows of ``cache`` hold."""
        ledger = cache.ledger
        ledger.open(width, model.like.device)
        kinds, lengths = model.attention, ledger.lengths
        windowed = set(kinds.kinds) != {"full_attention"}
        if len(set(lengths)) == 1 and not windowed:
            # Rows that stand together share one mask, and need none where they begin.
            mask = chain_mask(lengths[0], width, model.like)
            return Pass({"full_attention": mask}, lengths[0], lengths[0] + width, None, rows, prefill=prefill)
        chains = [chain_parents(width - 1)] * len(lengths)
        return plan(lengths, chains, width, kinds, model.like, rows, prefill)

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Run the time model over the frames that become complete, the depth model over all of them.

        ``calls`` are a row's own passes, of either model.
        """
        for number, root, draft in zip(rows, roots, drafts, strict=True):
            if not draft.is_chain:
                raise UnsupportedError(
                    f"Drafts for {self._target.name} are chains in (frame, codebook) order: got the parents "
                    f"{draft.parents}. Use a drafter that drafts chains."
                )
            self._rows[number].fed = [root, *draft.ids]
        logits = self._run(rows, last_only=False)
        calls = [self._calls(self._rows[number]) for number in rows]
        return Scores(logits=logits, calls=calls)

    def _calls(self, row: _Row) -> int:
        completed = (len(row.codes) + len(row.fed)) // self._slots > len(row.codes) // self._slots
        return int(completed) + int(bool(row.frames))

    def _run(self, rows: Sequence[int], last_only: bool) -> list[Tensor]:
        """Logits after each symbol of ``fed`` (or after the last one alone), for these rows."""
        counts = [1 if last_only else len(self._rows[number].fed) for number in rows]
        firsts = [sum(counts[:place]) for place in range(len(rows) + 1)]
        width = self._target.spec.vocab_size
        out = self._time.like.new_full((firsts[-1], width), -torch.inf)
        # The answer's row for a symbol at a position of the stream of each row.
        shifts = {
            number: first + count - len(self._rows[number].codes) - len(self._rows[number].fed) - 1
            for number, first, count in zip(rows, firsts, counts, strict=False)
        }
        self._run_time(rows, shifts, last_only, out)
        self._run_depth(rows, shifts, last_only, out)
        return [out[first : first + count] for first, count in zip(firsts, counts, strict=False)]

    def _run_time(self, rows: Sequence[int], shifts: dict[int, int], last_only: bool, out: Tensor) -> None:
        """Run the frames that are complete now; rows without any idle along."""
        slots = self._slots
        done = {number: len(self._rows[number].codes) // slots for number in rows}
        ends = {n: (len(self._rows[n].codes) + len(self._rows[n].fed)) // slots for n in rows}
        width = max(ends[number] - done[number] for number in rows)
        if not width:
            return
        states = self._time_states(rows, done, ends, width)
        wanted: list[_Wanted] = []
        for number in rows:
            row, place = self._rows[number], self.rows.index(number)
            new = ends[number] - done[number]
            row.states += list(states[place, :new])
            known = len(row.codes) + len(row.fed)
            for column in range(new):
                position = (done[number] + column + 1) * slots
                if not last_only or position == known:
                    wanted.append(_Wanted(position + shifts[number], place, column))
        self._place(out, wanted, states, self._time.head)

    def _time_states(
        self, rows: Sequence[int], done: dict[int, int], ends: dict[int, int], width: int
    ) -> Tensor:
        slots, device = self._slots, self._time.like.device
        codes = torch.zeros((len(self.rows), width, slots), dtype=torch.long)
        for number in rows:
            row, new = self._rows[number], ends[number] - done[number]
            if new:
                known = row.codes[done[number] * slots :] + row.fed
                found = torch.tensor(known[: new * slots]).view(new, slots)
                codes[self.rows.index(number), :new] = found
        first = [len(self._rows[number].codes) // slots for number in self.rows]
        prompts = [self._rows[number].prompt for number in self.rows]
        inputs = self._time.frames(codes.to(device), first, prompts)
        self._count(time=1)
        step = self._plan(self._time, self._times, width, self.rows)
        return self._time(inputs, step, self._times)

    def _place(
        self,
        out: Tensor,
        wanted: Sequence[_Wanted],
        states: Tensor,
        head: Callable[[Tensor], Tensor],
    ) -> None:
        """Put the logits of some states of a pass where they belong."""
        if not wanted:
            return
        outs, rows, columns = zip(*wanted, strict=True)
        logits = head(states[list(rows), list(columns)])
        out[list(outs), : logits.shape[-1]] = logits

    def _run_depth(self, rows: Sequence[int], shifts: dict[int, int], last_only: bool, out: Tensor) -> None:
        """Run, for each row, the frame it stands in and those behind it, each as a row of the batch."""
        frames = self._frames(rows)
        if not any(frame.end for frame in frames):
            return
        frames = self._restarted(frames)
        found = self._depth_states(frames)
        wanted: dict[int, list[_Wanted]] = defaultdict(list)
        for line, frame in enumerate(frames):
            number = self.rows[frame.place]
            if number not in shifts or not frame.end:
                continue
            row = self._rows[number]
            row.frames[frame.number] = (line, frame.end)
            known, after = len(row.codes) + len(row.fed), frame.end - self._depth.lead
            for slot in range(frame.first, after + 1):
                position = frame.number * self._slots + slot
                if not last_only or position == known:
                    column = slot - 1 + self._depth.lead - frame.start
                    wanted[slot].append(_Wanted(position + shifts[number], line, column))
        for slot, ones in wanted.items():
            self._place(out, ones, found, partial(self._depth.head, slot=slot))

    def _frames(self, rows: Sequence[int]) -> list[_Frame]:
        """The frames of a depth pass, at least one for each row of the batch; ``end`` 0 for idle ones."""
        frames: list[_Frame] = []
        for place, number in enumerate(self.rows):
            row, held = self._rows[number], self._depths.ledger.lengths[place]
            row.frames, row.line, row.held = {}, len(frames), held
            own = self._asked(place, row, held) if number in rows else []
            frames += own or [_Frame(place, len(row.codes) // self._slots, held, 0, 0)]
        return frames

    def _asked(self, place: int, row: _Row, held: int) -> list[_Frame]:
        """The frames whose slots behind the first are asked for."""
        slots, lead = self._slots, self._depth.lead
        before, known = len(row.codes), len(row.codes) + len(row.fed)
        found: list[_Frame] = []
        for number in range(before // slots, known // slots + 1):
            first = max(before + 1 - number * slots, 1)
            last = min(known - number * slots, slots - 1)
            if first <= last:
                start = held if number == before // slots else 0
                found.append(_Frame(place, number, start, last + lead, first))
        return found

    def _restarted(self, frames: list[_Frame]) -> list[_Frame]:
        """The same frames, all from one entry where they have one, or where that costs no wider pass."""
        asked = [frame for frame in frames if frame.end]
        starts = {frame.start for frame in asked}
        width, whole = max(f.end - f.start for f in asked), max(f.end for f in asked)
        if len(starts) > 1:
            if width < whole and not self._depth.lockstep:
                return frames
            starts = {0}
        return [frame._replace(start=min(starts)) for frame in frames]

    def _depth_states(self, frames: Sequence[_Frame]) -> Tensor:
        lead, slots = self._depth.lead, self._slots
        width = max(frame.end - frame.start for frame in frames)
        codes = torch.zeros((len(frames), width), dtype=torch.long)
        for line, frame in enumerate(frames):
            row = self._rows[self.rows[frame.place]]
            begin = frame.number * slots + max(frame.start - lead, 0)
            end = frame.number * slots + frame.end - lead
            if frame.end:
                entry = max(lead - frame.start, 0)
                ids = _between(row.codes, row.fed, begin, end)
                codes[line, entry : entry + len(ids)] = torch.tensor(ids, dtype=torch.long)
        places = [frame.place for frame in frames]
        if places != list(range(len(self._depths.ledger.lengths))):
            self._depths.keep(places)
        self._depths.ledger.lengths = [frame.start for frame in frames]
        states = torch.stack([self._rows[self.rows[f.place]].states[f.number] for f in frames])
        self._count(depth=1)
        step = self._plan(self._depth, self._depths, width, self.rows)
        return self._depth(states, codes.to(self._depth.like.device), step, self._depths)

    def commit(self, rows: Sequence[int], paths: Sequence[tuple[int, ...]]) -> None:
        """Keep the root and the path of each row: whole frames in one cache, the begun one in the other."""
        for number, path in zip(rows, paths, strict=True):
            row = self._rows[number]
            row.codes += row.fed[: len(path) + 1]
            row.fed = []
            done = len(row.codes) // self._slots
            del row.states[done + 1 :]
            self._times.ledger.lengths[self.rows.index(number)] = row.start + done
        self._settle(rows)

    def _settle(self, committed: Sequence[int]) -> None:
        """One row of the depth batch for each row: the frame that it stands in."""
        ledger, lead = self._depths.ledger, self._depth.lead
        lines, lengths = [], []
        for number in self.rows:
            row = self._rows[number]
            if number in committed:
                frame, inside = divmod(len(row.codes), self._slots)
                line, entries = row.frames.get(frame, (row.line, 0))
                lengths.append(min(entries, inside + lead))
            else:
                line = row.line
                lengths.append(min(row.held, ledger.lengths[line]))
            lines.append(line)
        if lines != list(range(len(ledger.lengths))):
            self._depths.keep(lines)
        ledger.lengths = lengths

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> list[Tensor]:
        """Run and commit one symbol per row: one pass of one model for rows that stand together."""
        for number, token in zip(rows, tokens, strict=True):
            self._rows[number].fed = [token]
        logits = self._run(rows, last_only=True)
        self.commit(rows, [()] * len(rows))
        return logits

    def walk(self, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None]) -> int:
        """Run and commit tokens, then symbol after symbol."""
        calls, coming = 0, list(tokens)
        while True:
            self._rows[row].fed = coming
            logits = self._run([row], last_only=True)[0]
            calls += self._calls(self._rows[row])
            self.commit([row], [tuple(range(len(coming) - 1))])
            following = choose(logits)
            if following is None:
                return calls
            coming = [following]

    def checkpoint(self, row: int) -> None:
        """Nothing to remember: both caches can go back anywhere behind the prompt."""

    def rewind(self, row: int, length: int) -> int:
        """Forget everything behind the first ``length`` symbols of a row.

        Raises:
            UnsupportedError: a place inside the prompt.
        """
        own, place = self._rows[row], self.rows.index(row)
        kept = length - len(own.prompt.ids)
        if kept < 0:
            raise UnsupportedError(
                f"A session of {self._target.name} goes back to the end of its prompt at most: got {length} "
                f"symbols of a prompt of {len(own.prompt.ids)}. Begin another session."
            )
        if kept < len(own.codes):
            before, (frame, inside) = len(own.codes) // self._slots, divmod(kept, self._slots)
            del own.codes[kept:], own.states[frame + 1 :]
            self._times.rewind(place, own.start + frame)
            # Entries of a frame gone by are not kept: the next pass runs them again.
            self._depths.rewind(place, inside + self._depth.lead if frame == before else 0)
        return self.length(row)

    def length(self, row: int) -> int:
        """Symbols of a row that have been run, its prompt included."""
        own = self._rows[row]
        return len(own.prompt.ids) + len(own.codes)

    def drop(self, rows: Sequence[int]) -> None:
        """Take rows out of the batch."""
        gone = [self.rows.index(row) for row in rows]
        order = self._times.drop(gone)
        self._depths.drop(gone)
        self.rows = [self.rows[place] for place in order]
        for number in rows:
            del self._rows[number]


def _between(codes: list[int], fed: list[int], begin: int, end: int) -> list[int]:
    """Symbols ``begin`` to ``end`` - 1 of both lists together, without joining them."""
    size = len(codes)
    return codes[begin:end] + fed[max(begin - size, 0) : max(end - size, 0)]
