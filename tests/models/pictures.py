"""What the tests of picture models share: tiny tokenizers, drafters, and the equality that all must keep."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import multispec as ms
from multispec.drafters import DraftModel, PromptLookup
from multispec.protocols import Drafter, Request
from multispec.sampling import Sampling
from multispec.testing import ScriptedDrafter, play, row

SPECIAL = ("<pad>", "</s>", "<s>", "<unk>")


def tokenizer(
    named: Mapping[str, str], plain: Sequence[str] = (), first: Sequence[str] = (), bos: bool = False
) -> Any:
    """Small letters, digits and a space, each one symbol, and nothing else that can be read.

    ``named`` are further special symbols by attribute, ``plain`` further ones without a name, ``first`` those
    with the lowest ids; ``bos`` puts ``<s>`` before every text.
    """
    letters = ["Ġ", *string.ascii_lowercase, *string.digits, "*"]
    known = list(dict.fromkeys([*first, *SPECIAL, *named.values(), *plain, *letters]))
    made = Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(known)}, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", known.index("<s>"))]
        )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    extra = {name: token for name, token in named.items() if name not in names}
    found = PreTrainedTokenizerFast(
        tokenizer_object=made,
        extra_special_tokens=extra,
        **(names | {k: named[k] for k in named if k in names}),
    )
    found.add_tokens([*first, *plain], special_tokens=True)
    return found


def symbols(target: Any, prompts: Sequence[ms.Prompt], drafter: Drafter | None, **changes: Any) -> Any:
    """Whole pictures of these prompts together: the generations."""
    settings: dict[str, Any] = {"sampling": Sampling(temperature=0.9, seed=7), "drafter": drafter, **changes}
    rows = []
    for prompt in prompts:
        spec = prompt.spec or target.spec
        length: dict[str, Any] = {"max_new_tokens": spec.fixed_length or 12, "end_ids": spec.end_ids}
        rows.append(replace(row(prompt.ids.tolist(), **(length | settings)), prompt=prompt))
    return play(target, *rows)


def tokens(generations: Sequence[ms.Generation]) -> list[list[int]]:
    """The ids of each."""
    return [one.tokens.tolist() for one in generations]


def guesses(size: int, tree: bool) -> ScriptedDrafter:
    """Random symbols, nearly always wrong, in chains or trees."""

    def propose(request: Request) -> ms.Draft:
        rng = random.Random(f"{request.row} {request.round_start}")
        count = min(4, request.budget.nodes)
        parents = tuple(rng.randrange(-1, node) if tree else node - 1 for node in range(count))
        return ms.Draft(tokens=torch.tensor([rng.randrange(size) for _ in parents]), parents=parents)

    return ScriptedDrafter(propose)


def oracle(truths: Sequence[Sequence[int]], size: int, tree: bool) -> ScriptedDrafter:
    """The symbols that each row will emit, with a mistake now and then; in trees behind a wrong sibling."""

    def propose(request: Request) -> ms.Draft:
        rng = random.Random(f"{request.row} {request.round_start}")
        truth = truths[request.row][request.round_start :]
        found: list[int] = []
        parents: list[int] = []
        above = -1
        for token in truth[: request.budget.nodes // 2 if tree else request.budget.nodes]:
            if tree:
                found.append((token + 1 + rng.randrange(size - 1)) % size)
                parents.append(above)
            found.append(rng.randrange(size) if rng.random() < 0.25 else token)
            parents.append(above)
            above = len(found) - 1
        return ms.Draft(tokens=torch.tensor(found, dtype=torch.long), parents=tuple(parents))

    return ScriptedDrafter(propose, num_draft_tokens=6)


def assert_drafting_changes_nothing(target: Any, stranger: Any, prompts: Sequence[ms.Prompt]) -> None:
    """Every drafter, chains and trees, one prompt and all together: the symbols of plain decoding alone."""
    size = target.spec.vocab_size
    truths = [tokens(symbols(target, [prompt], None))[0] for prompt in prompts]
    assert len({tuple(one) for one in truths}) > 1, "prompts that all give the same test nothing"
    assert all(len(set(one)) > 3 for one in truths), "a model that repeats itself tests nothing"
    drafters: dict[str, Drafter | None] = {
        "none": None,
        "prompt_lookup": PromptLookup(),
        "guessed trees": guesses(size, tree=True),
        "oracle": oracle(truths, size, tree=False),
        "oracle trees": oracle(truths, size, tree=True),
        "itself": DraftModel(target, num_draft_tokens=3),
        "stranger": DraftModel(stranger, num_draft_tokens=3),
    }
    for name, drafter in drafters.items():
        together = symbols(target, prompts, drafter)
        assert tokens(together) == truths, name
        if name == "oracle trees":
            assert tokens(symbols(target, prompts[:1], drafter)) == truths[:1], name
        drafted = sum(one.report.drafted for one in together)
        assert not any(one.report.drafter_failures for one in together), name
        assert drafted > 0 or name in ("none", "prompt_lookup"), name
        accepted = sum(one.report.accepted for one in together)
        assert accepted == drafted if name == "itself" else accepted < drafted or not drafted, name
        if name.startswith("oracle"):
            assert accepted > 0, name
