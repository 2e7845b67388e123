"""The front door: prompts in, generations out; words and pixels are left to a modality."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from multispec.asking import Asked, Batch, Methods, batch_of, check_words
from multispec.errors import GenerationError, MultispecError, OutputWarning, UsageError
from multispec.loop import rounds
from multispec.modality import IdsOnly, Modality
from multispec.processing import LogitsProcessor
from multispec.protocols import Target
from multispec.queue import Queue
from multispec.report import Clock
from multispec.row import Row
from multispec.sampling import Sampling
from multispec.stream import Generation, Step


class Generator:
    """A target with a modality: ``generate`` and ``stream``.

    ``draft`` is the draft model that ``drafter="auto"`` and ``drafter="draft_model"`` use.
    """

    def __init__(self, target: Target, modality: Modality | None = None, draft: Any = None) -> None:
        self.target = target
        self.modality: Modality = IdsOnly() if modality is None else modality
        self.methods = Methods(draft, self.modality.drafter, target)

    def drafting(self, method: str) -> Generator:
        """The same generator, whose ``drafter="auto"`` is the method of that name.

        Raises:
            UnknownNameError: no such method.
        """
        self.methods.settle(method)
        return self

    def generate(
        self,
        prompt: Any,
        *,
        drafter: Any = "auto",
        verifier: Any = "coupled",
        policy: Any = "auto",
        sampling: Sampling | Sequence[Sampling] | None = None,
        max_new_tokens: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Any = None,
        streamer: Any = None,
        output_scores: bool = False,
        guidance: Any = None,
        negative: Any = None,
        batch_size: int | None = None,
        max_memory: int | str | None = None,
        **words: Any,
    ) -> Any:
        """Generate from one prompt (a Generation) or a list of prompts (a list of them, made together).

        A list of ints is one prompt of ids; a list of strings or of lists is a batch; a list of messages
        (dicts) is one chat. ``sampling``, ``drafter``, ``policy``, ``max_new_tokens``, ``stop``, ``guidance``
        and ``negative`` may be lists with one entry per prompt. ``guidance`` is a scale (in the model's
        convention) or a ``Guidance``; ``negative`` is the prompt of its other branch. transformers' own words
        (``assistant_model``, ``num_assistant_tokens``, ``prompt_lookup_num_tokens``, ``stop_strings`` ...)
        are understood. ``sampling`` defaults to that of the modality, ``max_new_tokens`` to the length of the
        stream where that is fixed, else to 128. Ctrl-C returns what was generated.

        ``batch_size`` is how many prompts run at once, all of them unless told: the others wait, and come in
        between rounds as prompts are done. ``max_memory``, in bytes or as "2GiB", bounds the caches of target
        and draft model, not weights and passing results; as many prompts run at once as fit into it. Neither
        changes any output.

        Raises:
            UsageError: a setting that cannot be right, before anything is computed.
            GenerationError: something broke half-way; ``error.partial`` holds what was made.

        >>> load("text").generate("Once upon a time", max_new_tokens=20)       # doctest: +SKIP
        """
        check_words(words)
        asked = Asked(
            drafter=drafter,
            verifier=verifier,
            policy=policy,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            stop=stop,
            generation_config=generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            output_scores=output_scores,
            guidance=guidance,
            negative=negative,
            batch_size=batch_size,
            max_memory=max_memory,
            words=words,
        )
        batch = batch_of(self.target, self.modality, self.methods, prompt, asked)
        clock = Clock()
        self._run(batch, clock, streamer)
        results = self._results(batch, clock)
        return results[0] if batch.single else results

    def _run(self, batch: Batch, clock: Clock, streamer: Any) -> None:
        if streamer is None:
            for _ in self._guarded(batch, clock):
                pass
            return
        if len(batch.rows) > 1:
            raise UsageError(
                f"A streamer follows one prompt: got {len(batch.rows)}. Use Generator.stream, which names "
                "the row of every step."
            )
        streamer.put(batch.rows[0].settings.prompt.ids[None])
        for steps in self._guarded(batch, clock):
            streamer.put(torch.tensor([step.token for step in steps]))
        streamer.end()

    def stream(self, prompt: Any, **settings: Any) -> Stream:
        """Each symbol as it is committed, with what it adds to the output (``step.delta``).

        Takes the settings of ``generate`` but ``streamer``; they are checked at once. The last step of a
        row carries what was held back. Several prompts interleave their rows: see ``step.row``.

        Raises:
            UsageError: a setting that cannot be right, before anything is computed.
        """
        batch = batch_of(self.target, self.modality, self.methods, prompt, Asked.of(settings))
        clock = Clock()

        def made() -> Any:
            results = self._results(batch, clock)
            return results[0] if batch.single else results

        return Stream(self._steps(batch, clock), made)

    def _steps(self, batch: Batch, clock: Clock) -> Iterator[Step]:
        pairs = zip(batch.rows, batch.strings, strict=True)
        decoders = [self.modality.stream(row.settings.prompt, strings) for row, strings in pairs]
        for steps in self._guarded(batch, clock):
            last = {step.row: place for place, step in enumerate(steps)}
            for place, step in enumerate(steps):
                decoder = decoders[step.row]
                delta = decoder.push(step.token)
                if place == last[step.row] and batch.rows[step.row].finish_reason is not None:
                    rest = decoder.finish()
                    delta = rest if delta is None else delta if rest is None else delta + rest
                yield step._replace(delta=delta)

    def _guarded(self, batch: Batch, clock: Clock) -> Iterator[list[Step]]:
        yield from guarded(self.target, batch.rows, clock, lambda: self._results(batch, clock), batch.queue)
        self.methods.experience.keep(batch.rows, batch.together)

    def _results(self, batch: Batch, clock: Clock) -> list[Generation]:
        for row in batch.rows:
            _note_length(row)
            _note(row, self.target.capabilities.changes)
        return [row.result(clock, lambda row: self._decoded(row, batch)) for row in batch.rows]

    def _decoded(self, row: Row, batch: Batch) -> Any:
        strings = batch.strings[row.number]
        try:
            return self.modality.decode(row.settings.prompt, row.history.generated, strings)
        except MultispecError as error:  # what was generated is worth more than its form
            note = f"no output: {error}"
            if note not in row.report.notes:
                row.report.notes.append(note)
                warnings.warn(str(error), OutputWarning, stacklevel=2)
            return None


def _note_length(row: Row) -> None:
    """Say of a stream that should have ended by itself that it did not."""
    usual = row.spec.usual_length
    if usual is None or row.finish_reason != "length" or row.settings.max_new_tokens != usual:
        return
    made = row.history.position
    _note(row, f"no end within {made} symbols: it was cut there. Pass max_new_tokens for more")


def _note(row: Row, note: str) -> None:
    """Say something once, if there is something to say."""
    if note and note not in row.report.notes:
        row.report.notes.append(note)


class Stream:
    """An iterator of steps; ``result`` is what ``generate`` would have returned, up to now."""

    def __init__(self, steps: Iterator[Step], made: Callable[[], Any]) -> None:
        self._steps = steps
        self._made = made

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Step:
        return next(self._steps)

    @property
    def result(self) -> Any:
        """The Generation so far (a list of them for several prompts), with output and report."""
        return self._made()


def guarded(
    target: Target,
    rows: Sequence[Row],
    clock: Clock,
    results: Callable[[], list[Generation]],
    queue: Queue | None = None,
) -> Iterator[list[Step]]:
    """The loop; Ctrl-C ends it quietly, and any error carries what was made.

    Raises:
        GenerationError: something broke half-way.
    """
    try:
        yield from rounds(target, rows, clock, queue)
    except KeyboardInterrupt:
        for row in rows:
            row.finish_reason = row.finish_reason or "interrupted"
    except GenerationError as error:
        error.partial = results()
        raise
    except Exception as error:
        made = max(row.history.position for row in rows)
        if isinstance(error, MultispecError) and not any(row.finish_reason for row in rows):
            raise  # nothing is lost
        wrapped = GenerationError(
            f"Generation broke after {made} symbols: {type(error).__name__}: {error}. "
            "What was made is in error.partial."
        )
        wrapped.partial = results()
        raise wrapped from error
