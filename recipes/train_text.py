"""Train the text demo models: a small Llama on books and Python code, and its distilled draft.

    python recipes/train_text.py --books ../shared/data/text

Stages: tokenizer, target, draft, export. Each resumes from what it left in `--out`. Learning
rates follow the clock, so a stage ends within its minutes on any machine, busy or not.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerBase as Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes are not installed

from recipes import _stages  # noqa: E402
from recipes import _text_data as data  # noqa: E402
from recipes import _text_distil as distil  # noqa: E402
from recipes._text_trainer import Schedule, Trainer, batches, load_weights  # noqa: E402

PROMPTS = (
    "Once upon a time",
    "The old man looked at the sea and",
    "def fibonacci(n):",
    "class Stack:\n    ",
)


@dataclass(frozen=True)
class Settings:
    """Settings of the recipe; every field is a command-line flag of the same name."""

    stage: str = "all"
    books: str = "../shared/data/text"
    code: str = ""  # a folder of Python modules; empty: the running Python's standard library
    out: str = "runs/text"
    export: str = "assets/text"
    smoke: bool = False  # tiny models, seconds per stage: checks that every stage runs
    minutes: float = 0.0  # of each training stage; 0: target_minutes and draft_minutes
    target_minutes: float = 75.0
    draft_minutes: float = 18.0
    lesson_minutes: float = 3.0  # most time for each of three kinds of lesson
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    workers: int = 2  # micro-batches in flight, one thread each
    seed: int = 0
    limit: int = 0  # documents of each kind; 0: all
    vocab_size: int = 4096
    hidden: int = 384
    intermediate: int = 896
    layers: int = 6
    head_dim: int = 64
    draft_hidden: int = 128
    draft_intermediate: int = 448
    draft_layers: int = 2
    draft_head_dim: int = 32
    positions: int = 2048
    length: int = 512
    long_share: float = 0.15  # last share of the time, on windows of `positions`
    batch_tokens: int = 6144
    micro_tokens: int = 1024
    draft_batch_tokens: int = 4096
    book_share: float = 0.6
    sampled_share: float = 0.4  # of the draft's tokens: text that the target wrote itself
    lesson_windows: int = 300  # of `positions` tokens, of each kind
    lesson_batches: int = 16  # of 48 rows of sampled text, `length` tokens each
    muon_rate: float = 0.015
    adam_rate: float = 0.003
    warmup_share: float = 0.03
    decay_share: float = 0.65
    save_seconds: float = 180.0

    @property
    def folder(self) -> Path:
        """Folder of tokens, checkpoints and the report."""
        return Path(self.out)

    def schedule(self, minutes: float) -> Schedule:
        """The schedule of a training stage."""
        names = {f.name for f in fields(Schedule)} & {f.name for f in fields(self)}
        values = {name: getattr(self, name) for name in names}
        values["minutes"] = self.minutes or minutes
        return Schedule(long_length=self.positions, **values)


def smoke(settings: Settings) -> Settings:
    """Return settings which run every stage in seconds."""
    return replace(
        settings,
        minutes=settings.minutes or 0.04,
        lesson_minutes=0.01,
        limit=2,
        vocab_size=512,
        hidden=64,
        intermediate=128,
        head_dim=32,
        layers=2,
        draft_hidden=32,
        draft_intermediate=64,
        draft_head_dim=16,
        draft_layers=1,
        positions=128,
        length=64,
        batch_tokens=512,
        micro_tokens=256,
    )


def llama(settings: Settings, role: str) -> LlamaForCausalLM:
    """Return a fresh target or draft with two key heads and tied embeddings."""
    prefix = "draft_" if role == "draft" else ""
    hidden, head_dim, layers, intermediate = (
        int(getattr(settings, prefix + name)) for name in ("hidden", "head_dim", "layers", "intermediate")
    )
    config = LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // head_dim,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=settings.positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)  # every layer starts as the identity
    cast(nn.Module, model).to(settings.device)
    return model


def trained(settings: Settings, role: str) -> LlamaForCausalLM:
    """Return the target or draft of the newest checkpoint, for inference."""
    model = llama(settings, role)
    load_weights(model, settings.folder / role)
    cast(nn.Module, model).eval().requires_grad_(False)
    return model


def logits_of(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Logits `[B, S, V]` in float32 of token rows `[B, S]`."""
    return cast(Tensor, model(input_ids=rows, use_cache=False).logits).float()


def corpus(settings: Settings, part: str) -> dict[str, data.Windows]:
    """Windows over the packed tokens of each kind, as the tokenizer stage wrote them."""
    with np.load(settings.folder / "tokens.npz") as tokens:
        return {k: data.Windows(tokens[f"{k}.{part}"], settings.seed) for k in data.KINDS}


def tokenizer_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Clean the corpus, train the tokenizer and pack the tokens."""
    path = settings.folder / "tokens.npz"
    if path.exists():
        return
    code = Path(settings.code) if settings.code else None
    documents = data.load_documents(Path(settings.books), code, settings.limit or None)
    tokenizer = data.train_tokenizer(documents, settings.vocab_size)
    tokenizer.save_pretrained(settings.folder / "tokenizer")
    streams = data.encode_documents(documents, tokenizer)
    np.savez(path, allow_pickle=False, **streams)
    print("tokens", {name: len(stream) for name, stream in streams.items()}, flush=True)


def target_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Train the target to predict the next token."""
    model, windows = llama(settings, "target"), corpus(settings, "train")
    shares = {"books": settings.book_share, "code": 1 - settings.book_share}

    def loss(rows: Tensor, done: float) -> Tensor:
        return F.cross_entropy(logits_of(model, rows)[:, :-1].mT, rows[:, 1:])

    schedule = settings.schedule(settings.target_minutes)
    trainer = Trainer(model, settings.folder / "target", schedule, loss, pool)
    trainer.run(lambda seen, n: batches(windows, shares, seen, settings.batch_tokens // n, n))


def lessons(settings: Settings, target: LlamaForCausalLM, pool: ThreadPoolExecutor) -> distil.Lessons:
    """Return what the draft learns from, kept in a file for the next time."""
    path = settings.folder / "lessons.safetensors"
    if not path.exists():
        plan = distil.Plan(
            windows=settings.lesson_windows,
            window=settings.positions,
            batches=settings.lesson_batches,
            rows=48,
            length=settings.length,
            minutes=settings.lesson_minutes,
            seed=settings.seed,
        )
        distil.prepare(target, corpus(settings, "train"), plan, pool).save(path)
    return distil.Lessons.load(path)


def draft_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Distil the target into the draft, on the corpus and on text that the target wrote."""
    model, target = llama(settings, "draft"), trained(settings, "target")
    known = lessons(settings, target, pool)
    print("lessons", known.ends.tolist(), flush=True)
    windows, book = known.windows(settings.seed), settings.book_share
    some = known.hidden[:: max(1, len(known.hidden) // 20000)].to(settings.device, target.dtype)
    head = distil.low_rank_head(target.lm_head.weight, some, settings.draft_hidden)
    model.get_input_embeddings().load_state_dict({"weight": head})

    def loss(rows: Tensor, done: float) -> Tensor:
        with torch.no_grad():
            hidden = known.hidden[rows.cpu()].to(settings.device, target.dtype)
            p = target.lm_head(hidden).float().softmax(-1)
        tokens = known.tokens[rows.cpu()].to(settings.device)
        return distil.distillation_loss(p, logits_of(model, tokens), done)

    def feed(seen: dict[str, int], length: int) -> Any:
        # The sampled rows are no longer than `length`: long windows would run across them.
        sampled = settings.sampled_share if length == settings.length else 0.0
        shares = {"books": (1 - sampled) * book, "code": (1 - sampled) * (1 - book)}
        shares |= {distil.SAMPLED: sampled} if sampled else {}
        return batches(windows, shares, seen, settings.draft_batch_tokens // length, length)

    schedule = settings.schedule(settings.draft_minutes)
    Trainer(model, settings.folder / "draft", schedule, loss, pool).run(feed)


def held_out_rows(settings: Settings, kind: str) -> Tensor:
    """Held-out token rows `[N, length]` of a kind, in order."""
    stream = torch.from_numpy(corpus(settings, "held_out")[kind].values.astype(np.int64))
    return stream[: len(stream) // settings.length * settings.length].view(-1, settings.length)


def held_out_loss(model: LlamaForCausalLM, rows: Tensor, pool: ThreadPoolExecutor) -> float:
    """Mean nats per token of rows, each read from its start."""

    @torch.inference_mode()
    def loss(some: Tensor) -> float:
        some = some.to(model.device)
        return float(F.cross_entropy(logits_of(model, some)[:, :-1].mT, some[:, 1:])) * len(some)

    return sum(pool.map(loss, torch.split(rows, 2))) / len(rows)


def agreement(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, rows: Tensor, pool: ThreadPoolExecutor
) -> dict[str, float]:
    """Expected acceptance of one draft token at two temperatures, and how often argmaxes agree."""

    @torch.inference_mode()
    def compare(some: Tensor) -> Tensor:
        p, q = (logits_of(model, some.to(model.device)) for model in (target, draft))
        same = (p.argmax(-1) == q.argmax(-1)).float().mean()
        accepted = [distil.acceptance(p, q, temperature).mean() for temperature in (1.0, 0.7)]
        return torch.stack([*accepted, same]).cpu() * len(some)

    totals = torch.stack(list(pool.map(compare, torch.split(rows, 2)))).sum(0) / len(rows)
    names = ("acceptance_at_1.0", "acceptance_at_0.7", "same_argmax")
    return dict(zip(names, totals.tolist(), strict=True))


def measure(
    settings: Settings, target: LlamaForCausalLM, draft: LlamaForCausalLM, tokenizer: Tokenizer,
    pool: ThreadPoolExecutor,
) -> dict[str, Any]:  # fmt: skip
    """Held-out losses of both models and their agreement, by kind of text."""
    report: dict[str, Any] = {}
    for kind in data.KINDS:
        rows = held_out_rows(settings, kind)
        text = str(tokenizer.decode(rows.flatten()))
        bits = rows.numel() / len(text.encode()) / math.log(2)
        losses = {"target": held_out_loss(target, rows, pool)}
        losses["draft"] = held_out_loss(draft, rows, pool)
        report[kind] = {f"{role}_nats_per_token": nats for role, nats in losses.items()}
        report[kind] |= {f"{role}_bits_per_byte": nats * bits for role, nats in losses.items()}
        report[kind] |= agreement(target, draft, rows, pool)
    starts = distil.prompts(corpus(settings, "held_out"), 16, settings.seed + 1)
    written, _ = distil.sample(target, starts, settings.length // 2, settings.seed + 1)
    return report | {distil.SAMPLED: agreement(target, draft, written, pool)}


def continuations(settings: Settings, model: LlamaForCausalLM, tokenizer: Tokenizer) -> list[str]:
    """The demo prompts continued greedily and at temperature 0.8."""
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").to(model.device)
        for choice in ({"do_sample": False}, {"do_sample": True, "temperature": 0.8, "top_k": 0}):
            torch.manual_seed(settings.seed)
            new = min(100, settings.positions - 16)
            rows = cast(Any, model).generate(**ids, max_new_tokens=new, **choice)
            texts.append(str(tokenizer.decode(rows[0])))
    return texts


def export_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Write both models in bfloat16 as transformers folders, and a report on what was written."""
    tokenizer = AutoTokenizer.from_pretrained(settings.folder / "tokenizer")
    generation = cast(Any, GenerationConfig)(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    models, sizes = dict[str, LlamaForCausalLM](), dict[str, int]()
    for role in ("target", "draft"):
        model = trained(settings, role).bfloat16()
        model.generation_config = generation
        model.save_pretrained(Path(settings.export) / role)
        shutil.copytree(settings.folder / "tokenizer", Path(settings.export) / role, dirs_exist_ok=True)
        cast(nn.Module, model).float()  # the rounded weights, in a type that every CPU is fast at
        models[role] = model
        sizes[f"{role}_parameters"] = model.num_parameters()
    report = sizes | measure(settings, models["target"], models["draft"], tokenizer, pool)
    report["continuations"] = continuations(settings, models["target"], tokenizer)
    text = json.dumps(report, indent=2)
    (settings.folder / "report.json").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)


STAGES = {
    "tokenizer": tokenizer_stage,
    "target": target_stage,
    "draft": draft_stage,
    "export": export_stage,
}


def parse(argv: Sequence[str] | None) -> Settings:
    """Return the settings given as flags."""
    return _stages.parse(Settings, STAGES, smoke, argv, __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one stage or all of them."""
    _stages.run(parse(argv), STAGES)


if __name__ == "__main__":
    main()
