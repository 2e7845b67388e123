"""Models of the image demo over captions and codes: vocabulary, sequences, sampling, lessons."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers import PreTrainedTokenizerBase as CaptionTokenizer

from recipes._text_trainer import autocast

SPECIALS = ("<pad>", "<bos>", "<boi>", "<eoi>")


def caption_tokenizer(captions: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over captions in small letters, which takes any text.

    Its ids are followed by those of `SPECIALS`; with them a caption is bos, words, boi.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.add_special_tokens(list(SPECIALS))
    bos, boi = (tokenizer.token_to_id(name) for name in ("<bos>", "<boi>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <boi>", special_tokens=[("<bos>", bos), ("<boi>", boi)]
    )
    create: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return create(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eoi>",
        additional_special_tokens=["<boi>"],
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class Vocabulary:
    """One row of ids: words, then `SPECIALS`, then the image codes."""

    offset: int  # id of code 0
    codes: int

    @staticmethod
    def of(tokenizer: CaptionTokenizer, codes: int) -> Vocabulary:
        """The codes come right behind the ids of the tokenizer."""
        return Vocabulary(len(tokenizer), codes)

    @property
    def size(self) -> int:
        """Ids in all."""
        return self.offset + self.codes

    def special(self, name: str) -> int:
        """Id of one of `SPECIALS`."""
        return self.offset - len(SPECIALS) + SPECIALS.index(name)

    @property
    def unconditional(self) -> list[int]:
        """The prompt without a caption."""
        return [self.special("<bos>"), self.special("<boi>")]


def code_states(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], codes: Tensor, vocabulary: Vocabulary
) -> Tensor:
    """Hidden states `[B, S, D]` from which codes `[B, S]` behind prompts are predicted.

    Rows are padded on the right, so that causal attention needs no mask.
    """
    starts = torch.tensor([len(prompt) - 1 for prompt in prompts])
    length = codes.shape[1]
    rows = torch.full((len(codes), int(starts.max()) + length), vocabulary.special("<pad>"))
    for row, prompt, some in zip(rows, prompts, codes.cpu(), strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
        row[len(prompt) : len(prompt) + length - 1] = some[:-1] + vocabulary.offset
    with autocast(str(model.device)):
        hidden = model.model(input_ids=rows.to(model.device), use_cache=False).last_hidden_state
    at = (starts[:, None] + torch.arange(length)).to(hidden.device)
    return cast(Tensor, hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1])))


def head(model: LlamaForCausalLM, hidden: Tensor) -> Tensor:
    """Logits `[..., V]` in float32 of hidden states `[..., D]`."""
    return cast(Tensor, model.lm_head(hidden.to(model.lm_head.weight.dtype))).float()


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): u + s (c - u) of logits."""
    return unconditional + scale * (conditional - unconditional)


def corrupted(codes: Tensor, table: Tensor, most: float) -> Tensor:
    """Codes `[B, S]` with a share of up to `most` in each row replaced by codes from anywhere in a table.

    A model that has seen wrong codes before it does not follow its own mistakes.
    """
    rate = most * torch.rand(len(codes), 1)
    others = table.flatten()[torch.randint(table.numel(), codes.shape)]
    return torch.where(torch.rand(codes.shape) < rate, others, codes)


def next_code_loss(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], seen: Tensor, codes: Tensor,
    vocabulary: Vocabulary,
) -> Tensor:  # fmt: skip
    """Mean nats per code of codes `[B, S]`, predicted from the prompts and from the codes `seen`."""
    logits = head(model, code_states(model, prompts, seen, vocabulary))
    wanted = (codes + vocabulary.offset).to(logits.device)
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())


@dataclass(frozen=True)
class Sampled:
    """Pictures that a model drew: codes `[B, S]`, and the states `[B, 2, S, D]` of both branches."""

    codes: Tensor
    hidden: Tensor


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    rows = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return rows, mask


@torch.inference_mode()
def draw(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], vocabulary: Vocabulary, length: int,
    scale: float, temperature: Tensor, seed: int,
) -> Sampled:  # fmt: skip
    """Draw one picture of `length` codes for each prompt, with guidance; temperatures are `[B]`."""
    rng = torch.Generator(model.device).manual_seed(seed)
    both = [*prompts, *[vocabulary.unconditional] * len(prompts)]
    step, mask = (part.to(model.device) for part in _left_padded(both, vocabulary.special("<pad>")))
    places, cache = (mask.cumsum(1) - 1).clamp(min=0), DynamicCache(config=model.config)
    warmth = temperature.to(model.device)[:, None]
    codes, hidden = list[Tensor](), list[Tensor]()
    for _ in range(length):
        out = model.model(input_ids=step, attention_mask=mask, position_ids=places, past_key_values=cache)
        hidden.append(out.last_hidden_state[:, -1:])
        conditional, other = head(model, hidden[-1][:, 0])[:, vocabulary.offset :].chunk(2)
        logits = guided(conditional, other, scale)
        codes.append(torch.multinomial((logits / warmth).softmax(-1), 1, generator=rng))
        step = codes[-1].repeat(2, 1) + vocabulary.offset
        mask, places = F.pad(mask, (0, 1), value=1), places[:, -1:] + 1
    states = torch.stack(torch.cat(hidden, 1).chunk(2), 1)
    return Sampled(torch.cat(codes, 1).cpu(), states.half().cpu())


@torch.inference_mode()
def reread(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], codes: Tensor, vocabulary: Vocabulary
) -> Sampled:
    """Codes `[B, S]` with the states of both branches for them."""
    both = [*prompts, *[vocabulary.unconditional] * len(prompts)]
    states = code_states(model, both, codes.repeat(2, 1), vocabulary)
    return Sampled(codes, torch.stack(states.chunk(2), 1).half().cpu())


@dataclass(frozen=True)
class Lessons:
    """What the draft learns from: prompts, codes, and the target's states of both branches."""

    prompts: Tensor  # [R, L], padded with -1
    codes: Tensor  # [R, S]
    hidden: Tensor  # [R, 2, S, D] float16
    drawn: Tensor  # [R] whether the target drew the picture itself

    def save(self, path: Path) -> None:
        """Write the lessons to one file."""
        save_file(vars(self), path)

    @staticmethod
    def load(path: Path) -> Lessons:
        """Read the lessons from a file."""
        return Lessons(**load_file(path))

    def prompt(self, row: int) -> list[int]:
        """The prompt of a row."""
        return [token for token in self.prompts[row].tolist() if token >= 0]


def collect(
    job: Callable[[int], tuple[list[list[int]], Sampled]], jobs: int, minutes: float,
    pool: ThreadPoolExecutor, workers: int,
) -> tuple[list[list[int]], Sampled]:  # fmt: skip
    """Run numbered jobs on the workers until all are done or the time is over; join their rows."""
    end, parts = time.monotonic() + 60 * minutes, list[tuple[list[list[int]], Sampled]]()
    while len(parts) < jobs and (time.monotonic() < end or not parts):
        parts += pool.map(job, range(len(parts), min(jobs, len(parts) + workers)))
    prompts = [prompt for some, _ in parts for prompt in some]
    codes, hidden = (torch.cat([getattr(s, name) for _, s in parts]) for name in ("codes", "hidden"))
    return prompts, Sampled(codes, hidden)


def lessons_of(read: tuple[list[list[int]], Sampled], drawn: tuple[list[list[int]], Sampled]) -> Lessons:
    """Join what the target read and what it drew."""
    prompts = [*read[0], *drawn[0]]
    width = max(map(len, prompts))
    return Lessons(
        prompts=torch.tensor([[*prompt, *[-1] * (width - len(prompt))] for prompt in prompts]),
        codes=torch.cat([read[1].codes, drawn[1].codes]),
        hidden=torch.cat([read[1].hidden, drawn[1].hidden]),
        drawn=torch.arange(len(prompts)) >= len(read[0]),
    )


def both_logits(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], codes: Tensor, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor]:
    """Conditional and unconditional logits, each `[B, S, V]`, for codes `[B, S]`."""
    both = [*prompts, *[vocabulary.unconditional] * len(prompts)]
    first, second = head(model, code_states(model, both, codes.repeat(2, 1), vocabulary)).chunk(2)
    return first, second


def annotate(model: LlamaForCausalLM, vocabulary: Vocabulary, grid: int, vq: str, guidance: float) -> None:
    """Say in the model's config what an image adapter has to know."""
    described: dict[str, Any] = {
        "modality": "image",
        "grid": [grid, grid],
        "codes": {"offset": vocabulary.offset, "size": vocabulary.codes},
        "begin_of_image": vocabulary.special("<boi>"),
        "end_of_image": vocabulary.special("<eoi>"),
        "vq": vq,
        "guidance": guidance,
        "pixels": [-1.0, 1.0],
    }
    cast(Any, model.config).multispec = described
