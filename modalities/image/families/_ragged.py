"""Models with arithmetic of ours as targets, compared once with a plain pass of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multispec.errors import UnsupportedError
from multispec.protocols import Capabilities, TargetSession
from multispec.stream import Draft, Prompt, StreamSpec
from multispec.targets.causal import tolerance
from multispec.targets.ragged import Forward, RaggedSession
from multispec.tree import path_to

# The forward of a batch: some models read more of a prompt than its ids.
Bind = Callable[[Sequence[Prompt]], Forward]
# The logits [V] after a prompt and these symbols, by a plain pass without a cache.
Reference = Callable[[Prompt, Sequence[int]], Tensor]


class RaggedTarget:
    """A target that runs ragged batches and trees through a ``Forward``.

    ``context_length`` counts the last symbol, which is never run itself.
    """

    def __init__(
        self, bind: Bind, spec: StreamSpec, *, context_length: int | None, device: torch.device, way: str
    ) -> None:
        self._bind = bind
        self.spec = spec
        self.context_length = context_length
        self.device = device
        self.capabilities = Capabilities(way=way)

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """Open a session over these prompts."""
        return RaggedSession(self._bind(prompts), prompts, capacity, nodes)


@torch.inference_mode()
def require_agreement(
    name: str, target: RaggedTarget, prompts: Sequence[Prompt], reference: Reference, dtype: torch.dtype
) -> None:
    """Run a tree and a chain behind two prompts, and compare each node with a plain pass.

    Raises:
        UnsupportedError: they differ by more than rounding.
    """
    size = target.spec.vocab_size
    session = target.begin(prompts, [len(prompt.ids) + 8 for prompt in prompts], 4)
    first = session.prefill().logits
    tree = Draft(tokens=torch.tensor([1 % size, 2 % size, 3 % size]), parents=(-1, -1, 1))
    drafts, roots = [tree, Draft.chain([5 % size])], [6 % size, 4 % size]
    scores = session.score([0, 1], roots, drafts).logits
    far: list[float] = []
    for row, (prompt, root, draft) in enumerate(zip(prompts, roots, drafts, strict=True)):
        far.append(_far(first[row][0], reference(prompt, [])))
        for node in range(-1, len(draft)):
            path = [draft.ids[step] for step in path_to(draft.parents, node)]
            far.append(_far(scores[row][node + 1], reference(prompt, [root, *path])))
    worst = float(torch.tensor(far).max())
    if not worst <= tolerance(dtype):  # NaN is no agreement
        raise UnsupportedError(
            f"{name} runs here otherwise than by its plain forward pass: logits differ by {worst:.2g} of "
            f"their deviation, the limit is {tolerance(dtype):.2g}. Report the checkpoint and its config."
        )


def _far(found: Tensor, expected: Tensor) -> float:
    scale = float(expected.float().std()) + 1e-12
    return float((found.float() - expected.float()).abs().max()) / scale
