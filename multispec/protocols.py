"""What a part must offer to take part in the loop: Target, Drafter, Verifier, Policy, Codec.

Parts satisfy these structurally; nothing inherits from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from multispec.history import History
from multispec.processing import Pipeline
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Observation, Prompt, StreamSpec, Verdict

# Room in every cache for one round's draft, whatever a policy asks for.
MAX_NODES = 256
Exactness = Literal["seed", "law", "group", "bounded", "heuristic"]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a target can do, the ``way`` it is run, and ``why`` it cannot do the rest.

    ``weights`` says what its linear maps were made to, ``changes`` what of that makes other results than the
    model's own; both are empty where nobody changed anything.
    """

    supports_tree: bool = True
    supports_rewind: bool = True
    exposes_hidden_states: bool = False
    way: str = ""
    why: str = ""
    weights: str = ""
    changes: str = ""


class Scores(NamedTuple):
    """Raw logits ``[D + 1, V]`` of each row: after the last committed symbol, then after each node.

    With K parallel slots there are ``D + K`` rows, K for each step: those of the first drafted step, which
    the last committed one gives, then those that each drafted step gives. ``calls`` are the passes that
    each row needed since the last scores; () stands for one each.
    """

    logits: Sequence[Tensor]
    hidden: Sequence[Tensor] | None = None
    calls: Sequence[int] = ()


@runtime_checkable
class TargetSession(Protocol):
    """A batch of rows inside a model; owns every cache. Rows are named by their number in ``prefill``."""

    def prefill(self) -> Scores:
        """Run the prompts: one row of logits each."""
        ...

    def score(self, rows: Sequence[int], roots: Sequence[int], drafts: Sequence[Draft]) -> Scores:
        """Run, for each row, its last committed symbol (not run yet) and its draft, in one pass.

        With parallel slots the last committed step is run: ``roots`` holds K symbols for every row.
        """
        ...

    def commit(self, rows: Sequence[int], paths: Sequence[tuple[int, ...]]) -> None:
        """Keep the last committed symbol and the nodes on each path; roll the rest back."""
        ...

    def extend(self, rows: Sequence[int], tokens: Sequence[int]) -> Sequence[Tensor]:
        """Run and commit one symbol per row: logits ``[1, V]`` each. A plain step, in one call."""
        ...

    def walk(self, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None], /) -> int:
        """Run and commit ``tokens``, mark the place, then go on symbol by symbol; returns the passes made.

        ``choose`` is given the logits ``[1, V]`` after each pass and names the next symbol; None ends
        the walk.
        """
        ...

    def checkpoint(self, row: int, /) -> None:
        """Remember where a row stands, for states that cannot be cropped."""
        ...

    def rewind(self, row: int, length: int, /) -> int:
        """Go back to the first ``length`` symbols of a row, or to the checkpoint before; returns where."""
        ...

    def length(self, row: int, /) -> int:
        """Symbols of a row that are in the cache, its prompt included."""
        ...

    def drop(self, rows: Sequence[int]) -> None:
        """Free rows that are done."""
        ...


@runtime_checkable
class Joinable(Protocol):
    """A ``TargetSession`` that takes new rows in between rounds, while others are under way.

    The loop runs the rows of a session without it to their end before it begins another session.
    """

    def join(
        self, rows: Sequence[int], prompts: Sequence[Prompt], capacity: Sequence[int], /
    ) -> Scores | None:
        """Run the prompts of new rows, under numbers that are free: one row of logits each.

        None where these prompts need a session of another kind; nothing has changed then.
        """
        ...


@runtime_checkable
class CacheBytes(Protocol):
    """A target, or a drafter with a model of its own, that knows what a row takes in its caches."""

    def cache_bytes(self, prompt: Prompt, capacity: int, /) -> int:
        """Bytes for a row that may grow to ``capacity`` symbols, with room for drafts of ``MAX_NODES``."""
        ...


def walk(
    session: TargetSession, row: int, tokens: Sequence[int], choose: Callable[[Tensor], int | None]
) -> int:
    """``TargetSession.walk`` made of the other methods."""
    draft = Draft.chain(tokens[1:])
    logits = session.score([row], [tokens[0]], [draft]).logits[0][-1:]
    session.commit([row], [tuple(range(len(draft)))])
    session.checkpoint(row)
    calls = 1
    while (following := choose(logits)) is not None:
        logits = session.extend([row], [following])[0]
        calls += 1
    return calls


@runtime_checkable
class Target(Protocol):
    """A model behind the core: begins sessions, says what it can do."""

    @property
    def spec(self) -> StreamSpec:
        """What its stream holds."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def context_length(self) -> int | None:
        """The most positions it can hold, or None."""
        ...

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """Open a session; row b may grow to ``capacity[b]`` symbols, drafts to ``nodes`` nodes."""
        ...


class Budget(NamedTuple):
    """How much to draft this round: at most ``nodes``, ending early behind a symbol that looks weak.

    Drafting ends behind a symbol whose law q is unsure, max q below ``confidence`` or an entropy above
    ``entropy`` (nats): properties of the law, not of what was drawn from it. Drafters that go down a chain
    or a beam symbol by symbol end it also behind a node where the product of q along the path is below
    ``reach``, and behind a level where the sum of these products over the beam is below ``mass``, looked at
    the ``depths`` named (all, where none is). Behind always means that the symbol itself is verified.

    ``drafter`` is the number of the one to ask where there are several. ``memory`` is what the policy wants
    to find in the past of the next round; nobody else looks at it. ``note`` says why this was chosen, where
    the report is to tell.
    """

    nodes: int
    confidence: float = 0.0
    entropy: float = math.inf
    reach: float = 0.0
    mass: float = 0.0
    depths: tuple[int, ...] = ()
    drafter: int = 0
    memory: object = None
    note: str = ""


class Request(NamedTuple):
    """What a drafter is asked for one row in one round.

    ``coupled`` says how to draw: with the shared noise of the target (``seed``), or with noise of
    the drafter's own, giving back the exact q (``law``). ``round_start`` is the position of the
    first symbol.
    """

    row: int
    history: History
    budget: Budget
    noise: Noise
    pipeline: Pipeline
    coupled: bool

    @property
    def round_start(self) -> int:
        """The position of the first symbol to be drafted."""
        return self.history.position


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a drafter is told at the start: the prompts and streams of its rows, the vocabulary, the room.

    ``trees`` says that the target scores drafts that branch. ``target`` and its ``session`` over the whole
    batch are there for drafters that are parts of the target itself: what they do to the session they undo
    before ``propose`` returns.
    """

    prompts: dict[int, Prompt]
    capacity: dict[int, int]
    vocab_size: int
    device: torch.device
    specs: dict[int, StreamSpec] = field(default_factory=dict)
    trees: bool = True
    target: Target | None = None
    session: TargetSession | None = None


@runtime_checkable
class DraftSession(Protocol):
    """A drafter at work on some rows of a batch."""

    def propose(self, requests: Sequence[Request]) -> Sequence[Draft]:
        """One draft per request, at most ``budget.nodes`` nodes each; empty is always allowed."""
        ...

    def observe(self, row: int, observation: Observation) -> None:
        """Learn what became of a row's draft. Called once per row and round, also without a draft."""
        ...

    def end(self, rows: Sequence[int]) -> None:
        """Forget rows that are done."""
        ...

    @property
    def calls(self) -> int:
        """Forward passes made so far."""
        ...


@runtime_checkable
class JoinableDrafts(DraftSession, Protocol):
    """A ``DraftSession`` that takes in rows that join the batch; others are begun anew for such rows."""

    def join(self, context: Context, /) -> bool:
        """Take in the rows of ``context``; False where they need a session of their own."""
        ...


@runtime_checkable
class Drafter(Protocol):
    """A way of drafting: a frozen dataclass that opens sessions."""

    name: ClassVar[str]

    @property
    def num_draft_tokens(self) -> int:
        """How many symbols it drafts when nobody says otherwise."""
        ...

    def begin(self, context: Context) -> DraftSession:
        """Open a session for the rows of ``context``."""
        ...


class Standing(NamedTuple):
    """Where a row stands when a draft is decided on.

    ``start`` is the position of the first symbol of the round, ``spent`` the total variation that
    the row has spent so far, ``length`` the most symbols it may emit (0: not known). ``depth`` is how
    many steps of the round come before: parallel slots are decided on one by one, each at its own start.
    """

    start: int
    spent: float = 0.0
    length: int = 0
    depth: int = 0


@runtime_checkable
class Verifier(Protocol):
    """A rule of acceptance: a frozen dataclass with one method, and the promise it keeps."""

    name: ClassVar[str]
    exactness: ClassVar[Exactness]
    coupled: ClassVar[bool]

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Decide on a draft; ``p`` has D + 1 rows."""
        ...


class Past(NamedTuple):
    """What a policy may look at: outcomes of earlier rounds, never the symbols of the coming one.

    Of the last round: the nodes asked for, how many were drafted and accepted, how deep the draft went and
    how deep it was accepted (``last_depth`` and ``last_kept``, in steps). ``rows`` are those that the next
    pass will run, ``step`` the symbols of a step (K parallel slots, else 1). The last round took the whole
    batch ``seconds``, ``draft_seconds`` of them for drafts, the largest of ``widest`` nodes; 0 where nobody
    measured. ``memory`` is what the policy put into its last budget, None at first: made of earlier pasts
    alone.
    """

    rounds: int = 0
    last_nodes: int = 0
    last_drafted: int = 0
    last_accepted: int = 0
    last_depth: int = 0
    last_kept: int = 0
    rows: int = 1
    memory: object = None
    step: int = 1
    seconds: float = 0.0
    draft_seconds: float = 0.0
    widest: int = 0


@runtime_checkable
class Policy(Protocol):
    """How much to draft next: a frozen dataclass with one pure method; what it remembers is in the past."""

    name: ClassVar[str]

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """The next round's budget; 0 nodes is a plain step."""
        ...


@runtime_checkable
class Codec(Protocol):
    """Turns symbols into media and back; used by the modalities, never by the core."""

    @property
    def cardinality(self) -> int:
        """Symbols per codebook."""
        ...

    @property
    def num_codebooks(self) -> int:
        """Codebooks per frame."""
        ...

    def encode(self, media: Any, /) -> Tensor:
        """Media to codes."""
        ...

    def decode(self, codes: Tensor, /) -> Any:
        """Codes to media."""
        ...
