"""The attention blocks that hardly turn a prompt's hidden states are left out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch.nn.functional as F

from multispec.drafters.self_draft import Itself, SelfDraftSession
from multispec.drafters.skip_layers import between, check_length, check_share
from multispec.errors import UsageError
from multispec.protocols import Context, DraftSession, Request
from multispec.targets.views import Sublayers, Watch


@dataclass(frozen=True)
class CosineSkip:
    """Draft with the target less those attention blocks that matter least for this prompt.

    Metel et al. (2024), Draft on the Fly, section 3: block l maps x to y = x + Attention_l(Norm(x)); the
    ``share`` of blocks (the first and the last layer stay) with the highest cosine similarity of x and y,
    averaged over the prompt, are left out. One watched pass over the last ``window`` symbols of the prompt
    measures it, before the first draft of every row.

    Raises:
        UsageError: a setting outside its range.
    """

    name: ClassVar[str] = "cosine_skip"
    paper: ClassVar[str] = "Metel et al. 2024 (Draft on the Fly), arXiv 2410.01028"
    trained: ClassVar[bool] = False
    share: float = 0.45
    num_draft_tokens: int = 5
    window: int = 64

    def __post_init__(self) -> None:
        check_length(self.num_draft_tokens)
        check_share(self.share)
        if not 1 <= self.window <= 128:
            raise UsageError(f"cosine_skip looks at 1 to 128 symbols: got window={self.window}.")

    def begin(self, context: Context) -> DraftSession:
        """Make ready to look at the prompts.

        Raises:
            UnsupportedError: a target whose attention blocks cannot be left out.
        """
        itself = Itself(context, self.name)
        lighter = lru_cache(maxsize=8)(itself.forward.without)
        lighter(Sublayers(frozenset(between(itself.layers, self.name)[:1])))  # refuses here if it must
        found: dict[int, Sublayers] = {}

        def way(request: Request) -> Sublayers:
            if request.row not in found:
                found[request.row] = self._chosen(itself, request)
                session.searching += 1
            return found[request.row]

        session = SelfDraftSession(itself, self.num_draft_tokens, way, lighter)
        return session

    def _chosen(self, itself: Itself, request: Request) -> Sublayers:
        watch, row = Watch(), request.row
        end = itself.session.length(row)
        ids = request.history.ids[max(0, end - self.window) : end]
        itself.session.rerun(row, ids, itself.forward.observing(watch))
        cosine = {
            layer: float(F.cosine_similarity(x, x + watch.attended[layer], dim=-1).mean())
            for layer, x in watch.entering.items()
        }
        inner = between(itself.layers, self.name)
        count = max(1, round(self.share * len(inner)))
        return Sublayers(frozenset(sorted(inner, key=lambda layer: -cosine[layer])[:count]))
