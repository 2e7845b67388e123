"""Models of the speech demo over phonemes and codes: vocabulary, positions, sequences, sampling, lessons."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.optimize import nnls
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerFast

from multispec.modalities.speech.families.aligned_llama import Scale
from multispec.modalities.speech.pronunciation import GAP, SIGNS
from recipes._text_trainer import autocast

UNKNOWN, BEGIN, END = "<unk>", "<speech>", "</speech>"


def phoneme_tokenizer(phonemes: Sequence[str], voices: Sequence[str]) -> PreTrainedTokenizerFast:
    """Phonemes, signs and voices, one symbol each; `BEGIN` and then `END` have the last two ids."""
    names = [UNKNOWN, GAP, *SIGNS, *phonemes]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    create: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return create(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        additional_special_tokens=[*(f"<{voice}>" for voice in voices), BEGIN, END],
        clean_up_tokenization_spaces=False,
    )


def durations(counts: NDArray[np.float64], frames: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many frames each of V symbols takes, none less than 0, from counts `[R, V]` and totals `[R]`.

    Least squares; a symbol that was never met takes what the others take on average.
    """
    found, _ = nnls(counts, frames)
    met = counts.sum(0) > 0
    found[~met] = frames.sum() / counts.sum()
    return cast(NDArray[np.float64], found)


@dataclass(frozen=True)
class Vocabulary:
    """One row of ids: phonemes and signs, voices, `BEGIN`, `END`, then the codes."""

    tokenizer: Any
    codes: int
    durations: Mapping[str, float]
    text_scale: float

    @cached_property
    def offset(self) -> int:
        """Id of code 0."""
        return len(self.tokenizer)

    @property
    def begin(self) -> int:
        """Id of `BEGIN`."""
        return self.offset - 2

    @property
    def end(self) -> int:
        """Id of `END`."""
        return self.offset - 1

    @property
    def size(self) -> int:
        """Ids in all."""
        return self.offset + self.codes

    @cached_property
    def scale(self) -> Scale:
        """The positions of a stream."""
        frames = torch.zeros(self.size, dtype=torch.float64)
        special = set(self.tokenizer.all_special_ids)
        for symbol, at in self.tokenizer.get_vocab().items():
            if at not in special:
                frames[at] = self.durations.get(symbol, self.text_scale)
        return Scale(frames, self.begin)

    def prompt(self, symbols: str, voice: str) -> list[int]:
        """The voice, symbols separated by spaces, `BEGIN`."""
        ids = self.tokenizer(symbols, add_special_tokens=False)["input_ids"]
        return [self.tokenizer.convert_tokens_to_ids(f"<{voice}>"), *ids, self.begin]


def padded(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    """Rows of different length as one tensor, padded on the right."""
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


@dataclass(frozen=True)
class Batch:
    """Streams padded on the right, and where in them codes, or `END`, are predicted."""

    ids: Tensor  # [B, L]
    places: Tensor  # [B, L]
    at: Tensor  # [B, S] columns from which they are predicted
    wanted: Tensor  # [B, S], -100 behind the end

    @staticmethod
    def of(
        prompts: Sequence[Sequence[int]], codes: Sequence[Tensor], vocabulary: Vocabulary,
        seen: Sequence[Tensor] | None = None,
    ) -> Batch:  # fmt: skip
        """Streams of prompts and codes `[T]`; the model is shown the codes `seen`, if they differ."""
        shown = codes if seen is None else seen
        ids, at, wanted = list[Tensor](), list[Tensor](), list[Tensor]()
        for prompt, some, said in zip(prompts, codes, shown, strict=True):
            ids.append(torch.cat([torch.tensor(prompt), said + vocabulary.offset]))
            at.append(torch.arange(len(prompt) - 1, len(prompt) + len(some)))
            wanted.append(torch.cat([some + vocabulary.offset, torch.tensor([vocabulary.end])]))
        places = [vocabulary.scale.places(row) for row in ids]
        return Batch(padded(ids), padded(places), padded(at), padded(wanted, -100))


def states(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Hidden states `[B, S, D]` from which codes are predicted.

    The mask is all ones, for without one such positions are taken for packed sequences; padding on the
    right is never seen by what is before it.
    """
    ids = batch.ids.to(model.device)
    with autocast(str(model.device)):
        hidden = model.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=batch.places.to(model.device),
            use_cache=False,
        ).last_hidden_state
    at = batch.at.to(model.device)
    return cast(Tensor, hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1])))


def head(model: LlamaForCausalLM, hidden: Tensor) -> Tensor:
    """Logits `[..., V]` in float32 of hidden states `[..., D]`."""
    return cast(Tensor, model.lm_head(hidden.to(model.lm_head.weight.dtype))).float()


def speech_logits(logits: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Logits `[..., V]` of `END` and the codes alone, as the layout has it."""
    return logits[..., vocabulary.end :]


def next_code_loss(model: LlamaForCausalLM, batch: Batch, vocabulary: Vocabulary) -> Tensor:
    """Mean nats per code."""
    logits = speech_logits(head(model, states(model, batch)), vocabulary)
    wanted = (batch.wanted - vocabulary.end).clamp(min=-100).to(logits.device)
    return F.cross_entropy(logits.flatten(0, 1), torch.where(wanted < 0, -100, wanted).flatten())


def corrupted(codes: Tensor, size: int, most: float) -> Tensor:
    """Codes `[T]` with a share of up to `most` replaced by any code.

    A model that has seen wrong codes before it does not follow its own mistakes.
    """
    rate = most * torch.rand(())
    return torch.where(torch.rand(codes.shape) < rate, torch.randint(size, codes.shape), codes)


@dataclass(frozen=True)
class Said:
    """What a model said: codes `[T]` of each row, and the states `[T + 1, D]` before each and the end."""

    codes: list[Tensor]
    hidden: list[Tensor]
    ended: list[bool]


@torch.inference_mode()
def say(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], vocabulary: Vocabulary, most: int,
    temperature: Tensor, seed: int,
) -> Said:  # fmt: skip
    """Say some prompts together, at most `most` codes each; temperatures are `[B]`, 0 is greedy."""
    rng = torch.Generator(model.device).manual_seed(seed)
    rows = [torch.tensor(prompt) for prompt in prompts]
    step, places = (padded([part.flip(0) for part in parts]).flip(1) for parts in (
        rows, [vocabulary.scale.places(row) for row in rows]))  # fmt: skip
    mask = padded([torch.ones_like(row) for row in rows]).flip(1).to(model.device)
    step, places = step.to(model.device), places.to(model.device)
    cache, warmth = DynamicCache(config=model.config), temperature.to(model.device)[:, None]
    done = torch.zeros(len(rows), dtype=torch.bool, device=model.device)
    tokens, hidden = list[Tensor](), list[Tensor]()
    while len(tokens) <= most and not bool(done.all()):
        out = model.model(input_ids=step, attention_mask=mask, position_ids=places, past_key_values=cache)
        hidden.append(out.last_hidden_state[:, -1:])
        logits = speech_logits(head(model, hidden[-1][:, 0]), vocabulary)
        drawn = torch.multinomial((logits / warmth.clamp(min=1e-4)).softmax(-1), 1, generator=rng)
        tokens.append(torch.where(warmth > 0, drawn, logits.argmax(-1, keepdim=True)))
        done |= tokens[-1][:, 0] == 0
        step = tokens[-1] + vocabulary.end
        mask, places = F.pad(mask, (0, 1), value=1), places[:, -1:] + 1
    return _said(torch.cat(tokens, 1).cpu(), torch.cat(hidden, 1).half().cpu())


def _said(tokens: Tensor, hidden: Tensor) -> Said:
    """Rows of `END` (0) and codes (from 1), cut at their first end."""
    ends = [(row == 0).nonzero().flatten()[:1].tolist() for row in tokens]
    sizes = [end[0] if end else tokens.shape[1] - 1 for end in ends]
    return Said(
        [row[:size] - 1 for row, size in zip(tokens, sizes, strict=True)],
        [row[: size + 1] for row, size in zip(hidden, sizes, strict=True)],
        [bool(end) for end in ends],
    )


@torch.inference_mode()
def reread(
    model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], codes: Sequence[Tensor], vocabulary: Vocabulary
) -> Said:
    """Codes that exist, with the states for them."""
    found = states(model, Batch.of(prompts, codes, vocabulary)).half().cpu()
    kept = [row[: len(some) + 1] for row, some in zip(found, codes, strict=True)]
    return Said(list(codes), kept, [True] * len(codes))


@dataclass(frozen=True)
class Lessons:
    """What the draft learns from: streams side by side, and the target's states for their codes."""

    prompts: Tensor  # [N] ids, one prompt after the other
    codes: Tensor  # [M]
    hidden: Tensor  # [M + R, D] float16; each stream has a state more than codes
    sizes: Tensor  # [R, 2] of prompts and codes
    said: Tensor  # [R] whether the target said it itself

    def save(self, path: Path) -> None:
        """Write the lessons to one file."""
        save_file(vars(self), path)

    @staticmethod
    def load(path: Path) -> Lessons:
        """Read the lessons from a file."""
        return Lessons(**load_file(path))

    @staticmethod
    def of(
        read: Sequence[tuple[list[list[int]], Said]], said: Sequence[tuple[list[list[int]], Said]]
    ) -> Lessons:
        """Join what the target read and what it said."""
        parts = [*read, *said]
        prompts = [torch.tensor(prompt) for some, _ in parts for prompt in some]
        codes = [row for _, one in parts for row in one.codes]
        own = sum(len(some) for some, _ in read)
        return Lessons(
            prompts=torch.cat(prompts),
            codes=torch.cat(codes),
            hidden=torch.cat([row for _, one in parts for row in one.hidden]),
            sizes=torch.tensor([[len(p), len(c)] for p, c in zip(prompts, codes, strict=True)]),
            said=torch.arange(len(prompts)) >= own,
        )

    @cached_property
    def _ends(self) -> Tensor:
        return F.pad(self.sizes.cumsum(0), (0, 0, 1, 0))

    def stream(self, row: int) -> tuple[list[int], Tensor, Tensor]:
        """Prompt, codes `[T]` and states `[T + 1, D]` of a row."""
        (p, c), (q, d) = self._ends[row].tolist(), self._ends[row + 1].tolist()
        return self.prompts[p:q].tolist(), self.codes[c:d], self.hidden[c + row : d + row + 1]


def collect(
    job: Callable[[int], tuple[list[list[int]], Said]], jobs: int, minutes: float, pool: ThreadPoolExecutor,
    workers: int,
) -> list[tuple[list[list[int]], Said]]:  # fmt: skip
    """Run numbered jobs on the workers until all are done or the time is over."""
    end, parts = time.monotonic() + 60 * minutes, list[tuple[list[list[int]], Said]]()
    while len(parts) < jobs and (time.monotonic() < end or not parts):
        parts += pool.map(job, range(len(parts), min(jobs, len(parts) + workers)))
    return parts


def annotate(
    model: LlamaForCausalLM,
    vocabulary: Vocabulary,
    voices: Sequence[str],
    text_limit: int,
    temperature: float,
) -> None:
    """Say in the model's config what a speech family has to know."""
    described: dict[str, Any] = {
        "modality": "speech",
        "codec": "../codec",
        "frame_rate": 50,
        "codes": {"offset": vocabulary.offset, "size": vocabulary.codes},
        "begin_of_speech": vocabulary.begin,
        "end_of_speech": vocabulary.end,
        "text": "phonemes",
        "pronunciation": "../pronunciation",
        "text_scale": vocabulary.text_scale,
        "durations": dict(vocabulary.durations),
        "voices": list(voices),
        "text_limit": text_limit,
        "sampling": {"temperature": temperature},
    }
    cast(Any, model.config).multispec = described
