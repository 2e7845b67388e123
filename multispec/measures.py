"""Measures of any stream: how likely its symbols are under a target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.branches import begin
from multispec.errors import PromptError
from multispec.frames import Frames
from multispec.history import History
from multispec.processing import Pipeline, Places
from multispec.protocols import MAX_NODES, Target
from multispec.sampling import Law, Sampling
from multispec.stream import Draft, Prompt, StreamSpec


@torch.inference_mode()
def token_nll(
    target: Target, prompt: Prompt, tokens: Sequence[int], *, sampling: Sampling | None = None
) -> Float[Tensor, " S"]:
    """-log p of each symbol given those before it, in nats, in as few passes as fit.

    p is what the stream is drawn from: both branches of the prompt's guidance, the grammar (a forced
    symbol costs 0) and ``sampling``; without that, the law at temperature 1. inf where p is 0. Of K parallel
    slots (``tokens`` in the order of their positions, whole steps) each is given the steps before.

    Raises:
        PromptError: no symbols, or part of a step.
    """
    if not len(tokens):
        raise PromptError("The likelihood of no symbols is nothing: got none. Pass the tokens of a result.")
    spec = prompt.spec or target.spec
    if len(tokens) % spec.step:
        raise PromptError(
            f"A stream with {spec.step} parallel slots has a likelihood step by step: got {len(tokens)} "
            "symbols. Pass the tokens of a result, flattened."
        )
    laws = _Laws(spec, prompt, sampling or Sampling())
    session = begin(target, [prompt], [len(laws.history) + len(tokens)], MAX_NODES)
    logits, found = session.prefill().logits[0], []
    rest = [int(token) for token in tokens]
    while True:
        # Row i of the logits stands before rest[i].
        count = len(logits)
        law = laws.of(logits, rest[: count - spec.step])
        chosen = torch.tensor(rest[:count], device=logits.device)
        found.append(-law.log_probs.double().gather(-1, chosen[:, None])[:, 0].cpu())
        if count == len(rest):
            break
        laws.commit(tuple(rest[:count]))
        root, rest = rest[count - spec.step : count], rest[count:]
        most = MAX_NODES // spec.step * spec.step
        draft = Draft.chain(rest[: min(len(rest), most) - spec.step])
        logits = session.score([0], root, [draft]).logits[0]
        session.commit([0], [tuple(range(len(draft)))])
    session.drop([0])
    return torch.cat(found)


class _Laws:
    """p of one stream, as the rows of a batch form it."""

    def __init__(self, spec: StreamSpec, prompt: Prompt, sampling: Sampling) -> None:
        drawn = spec.drawn(sampling)
        self.history = History(prompt.ids.tolist(), foreign_prompt=spec.prompt_size is not None)
        self._pipeline = Pipeline(
            drawn.sampling,
            spec.vocab_size,
            end_ids=spec.end_ids,
            grammar=spec.grammar,
            processors=drawn.processors,
        )
        self._frames = None
        if spec.step > 1:
            ids, ends = self.history.ids, spec.end_ids
            self._frames = Frames(spec, ids, drawn.sampling, ends, drawn.processors)

    def of(self, logits: Tensor, behind: Sequence[int]) -> Law:
        """The law at each row of ``logits``: before ``behind``, and behind each symbol (step) of it."""
        if self._frames is not None:
            return self._frames.laws(logits, Draft.chain(behind), self.history).law
        prefixes = tuple(tuple(behind[:count]) for count in range(len(logits)))
        return self._pipeline.law(logits, Places(self.history, prefixes))

    def commit(self, symbols: tuple[int, ...]) -> None:
        """Go on behind these."""
        self.history.extend(symbols)
        if self._frames is not None:
            self._frames.commit(symbols)
        else:
            self._pipeline.commit(symbols)
