"""Train the image demo models on emoji: VQ tokenizer, small Llama over its codes, distilled draft.

    python recipes/train_image.py --pictures ../shared/data/emoji

Stages: data, tokenizer, codes, target, draft, export. Each resumes from what it left in `--out`.
Learning rates follow the clock, so a stage ends within its minutes on any machine, busy or not.

Unicode names become what people say by the tables of `_image_captions.py`. Things of one colour are
also shown in six other colours, with the colour in the caption: that is how the models learn to put
colour and thing together. The pairs in `UNSEEN` are never shown, and the demo asks for them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerBase as CaptionTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes are not installed

from recipes import _image_data as data  # noqa: E402
from recipes import _image_models as ar  # noqa: E402
from recipes import _image_tokenizer as vq  # noqa: E402
from recipes import _stages  # noqa: E402
from recipes import _text_distil as distil  # noqa: E402
from recipes._image_captions import DEMO, wordings  # noqa: E402
from recipes._text_data import Windows  # noqa: E402
from recipes._text_trainer import Schedule, Trainer, batches, load_weights  # noqa: E402

KINDS = ("original", "recoloured")
KNOWN = ("names", "captions", "pixels", "kinds", "held_out")


@dataclass(frozen=True)
class Settings:
    """Settings of the recipe; every field is a command-line flag of the same name."""

    stage: str = "all"
    pictures: str = "../shared/data/emoji"  # a folder of PNG and captions.tsv
    out: str = "runs/image"
    export: str = "assets/image"
    smoke: bool = False  # tiny models, seconds per stage: checks that every stage runs
    minutes: float = 0.0  # of each training stage; 0: the minutes below
    tokenizer_minutes: float = 45.0
    target_minutes: float = 90.0
    draft_minutes: float = 18.0
    lesson_minutes: float = 5.0  # most time for each of two kinds of lesson
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    workers: int = 2  # micro-batches in flight, one thread each
    seed: int = 0
    limit: int = 0  # pictures before the copies in other colours; 0: all
    channels: str = "16,32,64"  # of the tokenizer, from 64 x 64 to 16 x 16
    code_dim: int = 8
    wide_codes: int = 512  # before merging
    codes: int = 128  # after merging, with the one of white ground
    picture_batch: int = 8
    micro_pictures: int = 8
    views: int = 4  # of each picture: as it is, moved, mirrored
    painted_views: int = 2  # of each copy in another colour
    vocab_size: int = 1024  # of captions, 256 bytes included
    hidden: int = 256
    intermediate: int = 576
    layers: int = 6
    head_dim: int = 64
    draft_hidden: int = 128
    draft_intermediate: int = 320
    draft_layers: int = 2
    draft_head_dim: int = 32
    positions: int = 384  # 256 codes and the caption
    batch: int = 16  # sequences
    micro_batch: int = 4
    draft_batch: int = 8
    draft_micro_batch: int = 2
    original_share: float = 0.7  # of the sequences; the rest are copies in other colours
    no_caption: float = 0.12  # share of sequences without a caption, for guidance
    corruption: float = 0.5  # most wrong codes in a training sequence
    guidance: float = 3.0
    lesson_rows: int = 1200  # read by the target, and
    lesson_draws: int = 960  # drawn by it
    draw_batch: int = 32
    muon_rate: float = 0.015
    adam_rate: float = 0.003
    warmup_share: float = 0.03
    decay_share: float = 0.65
    save_seconds: float = 180.0

    @property
    def folder(self) -> Path:
        """Folder of pictures, codes, checkpoints and the report."""
        return Path(self.out)

    def schedule(self, minutes: float, share: float, micro: int) -> Schedule:
        """The schedule of a training stage, or of a share of it; its windows are single pictures."""
        return Schedule(
            minutes=(self.minutes or minutes) * share,
            length=1,
            long_length=1,
            long_share=0.0,
            micro_tokens=micro,
            muon_rate=self.muon_rate,
            adam_rate=self.adam_rate,
            warmup_share=self.warmup_share,
            decay_share=self.decay_share,
            save_seconds=self.save_seconds,
        )


def smoke(settings: Settings) -> Settings:
    """Return settings which run every stage in seconds."""
    return replace(
        settings,
        minutes=settings.minutes or 0.03,
        limit=60,
        channels="8,8,16",
        wide_codes=32,
        codes=16,
        views=2,
        painted_views=1,
        vocab_size=300,
        hidden=32,
        intermediate=64,
        layers=2,
        head_dim=16,
        draft_hidden=16,
        draft_intermediate=32,
        draft_layers=1,
        draft_head_dim=8,
        batch=4,
        micro_batch=2,
        draft_batch=2,
        draft_micro_batch=1,
        lesson_minutes=0.01,
        lesson_rows=4,
        lesson_draws=2,
        draw_batch=2,
    )


def stored(settings: Settings) -> dict[str, Any]:
    """What the data stage wrote: pixels, names, captions, kinds and which are held out."""
    with np.load(settings.folder / "pictures.npz") as arrays:
        return dict(arrays)


def data_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Choose and caption the pictures, paint copies, and keep them in one file."""
    path = settings.folder / "pictures.npz"
    if path.exists():
        return
    pictures = data.load_pictures(Path(settings.pictures), settings.limit or None)
    np.savez_compressed(
        path,
        pixels=np.stack([p.pixels for p in pictures]),
        names=np.array([p.name for p in pictures]),
        captions=np.array(["|".join(p.captions) for p in pictures]),
        kinds=np.array([p.kind for p in pictures]),
        held_out=np.array([p.held_out for p in pictures]),
    )
    some = pictures[:: max(1, len(pictures) // 400)]
    sheet = data.contact_sheet([p.pixels for p in some], [p.captions[0] for p in some], 20, 1)
    sheet.save(settings.folder / "pictures.png")
    print("pictures", len(pictures), "held out", sum(p.held_out for p in pictures), flush=True)


def windows_by_kind(settings: Settings, known: dict[str, Any], of: Any = None) -> dict[str, Windows]:
    """Windows over training pictures of each kind, or over rows `of` pictures."""
    index = np.arange(len(known["kinds"])) if of is None else of
    kinds, held_out = known["kinds"][index], known["held_out"][index]
    rows = {kind: np.flatnonzero((kinds == kind) & ~held_out) for kind in KINDS}
    return {kind: Windows(some, settings.seed, jitter=False) for kind, some in rows.items()}


def train_tokenizer(
    settings: Settings, model: vq.Model, name: str, share: float, pool: ThreadPoolExecutor,
    loss_of: Callable[[vq.Model, Tensor], Tensor],
) -> None:  # fmt: skip
    """Train a tokenizer for a share of its minutes, or load what that left."""
    known = stored(settings)
    pixels, windows = torch.from_numpy(known["pixels"]), windows_by_kind(settings, known)

    def loss(rows: Tensor, done: float) -> Tensor:
        views = vq.sample_views(pixels[rows.flatten().cpu()])
        return loss_of(model, vq.as_input(views).to(settings.device))

    def feed(seen: dict[str, int], length: int) -> Iterator[dict[str, Tensor]]:
        return batches(windows, {"original": 0.6, "recoloured": 0.4}, seen, settings.picture_batch, length)

    schedule = settings.schedule(settings.tokenizer_minutes, share, settings.micro_pictures)
    Trainer(model, settings.folder / name, schedule, loss, pool).run(feed)


def training_latents(settings: Settings, model: vq.Model, pool: ThreadPoolExecutor) -> Tensor:
    """At most 60,000 latents of training pictures, as many of painted ones as of originals."""
    known = stored(settings)
    rng = np.random.default_rng(settings.seed)
    chosen = [rng.permutation(w.values)[:600] for w in windows_by_kind(settings, known).values()]
    found = vq.latent_sample(model, torch.from_numpy(known["pixels"][np.concatenate(chosen)]), pool)
    return found[torch.randperm(len(found))[:60000]]


def fresh_tokenizer(settings: Settings, codes: int) -> vq.Model:
    """An untrained tokenizer."""
    torch.manual_seed(settings.seed)
    channels = [int(number) for number in settings.channels.split(",")]
    return vq.vq_model(channels, codes, settings.code_dim).to(settings.device)


def code_counts(settings: Settings, model: vq.Model, pool: ThreadPoolExecutor) -> Tensor:
    """How often training pictures use each code, white aside."""
    known = stored(settings)
    train = torch.from_numpy(known["pixels"][~known["held_out"]][::2])
    codes = vq.encode(model, train, pool).flatten()
    return torch.bincount(codes, minlength=len(vq.codebook(model)))[1:]


def tokenizer_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Train the tokenizer: without codes, with many, and with those that are wanted.

    A phase is over when the next one has a checkpoint, so that more minutes go to the last.
    """
    wide, merged = (settings.folder / f"vq-{name}.safetensors" for name in ("wide", "merged"))
    model = fresh_tokenizer(settings, settings.wide_codes)
    if not wide.exists():
        vq.codebook(model).requires_grad_(False)
        train_tokenizer(settings, model, "vq-smooth", 0.4, pool, vq.noisy_loss)
        points = training_latents(settings, model, pool)
        model = vq.with_codes(model, vq.k_means(points, settings.wide_codes - 1, 12, settings.seed))
    if not merged.exists():
        train_tokenizer(settings, model, "vq-wide", 0.3, pool, vq.quantized_loss)
        vectors = vq.codebook(model)[1:].detach().cpu()
        model = vq.with_codes(
            model, vq.merge(vectors, code_counts(settings, model, pool), settings.codes - 1)
        )
    else:
        model = fresh_tokenizer(settings, settings.codes)
    train_tokenizer(settings, model, "vq-merged", 0.3, pool, vq.quantized_loss)


def trained_tokenizer(settings: Settings) -> vq.Model:
    """The tokenizer of the newest checkpoint, for inference."""
    model = fresh_tokenizer(settings, settings.codes)
    load_weights(model, settings.folder / "vq-merged")
    return model.eval().requires_grad_(False)


def codes_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Turn every picture and its moved copies into codes; measure and keep the tokenizer."""
    path = settings.folder / "codes.npz"
    if path.exists():
        return
    model, known = trained_tokenizer(settings), stored(settings)
    measured = measure_tokenizer(settings, model, known, pool)
    (settings.folder / "tokenizer.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print("tokenizer", json.dumps(measured), flush=True)
    model.save_pretrained(settings.folder / "vq")
    seen, owners = list[data.Pixels](), list[int]()
    for i, picture in enumerate(pictures_of(known)):
        count = settings.views if picture.kind == "original" else settings.painted_views
        some = data.views(picture, count, settings.seed)
        seen += some
        owners += [i] * len(some)
    codes = vq.encode(model, torch.from_numpy(np.stack(seen)), pool).flatten(1)
    np.savez(path, codes=codes.numpy().astype(np.uint16), owners=np.array(owners))
    captions = [
        word for i in np.unique(owners) for said in known["captions"][i].split("|") for word in wordings(said)
    ]
    tokenizer = ar.caption_tokenizer(captions, settings.vocab_size)
    tokenizer.save_pretrained(settings.folder / "captions")
    print("codes", codes.shape, "words", len(tokenizer), flush=True)


def all_wordings(known: dict[str, Any]) -> list[list[str]]:
    """The ways to ask for each picture."""
    return [
        [words for said in str(line).split("|") for words in wordings(said)] for line in known["captions"]
    ]


def pictures_of(known: dict[str, Any]) -> Iterator[data.Picture]:
    """The pictures of the data stage, one by one."""
    for name, said, pixels, kind, held_out in zip(*(known[key] for key in KNOWN), strict=True):
        yield data.Picture(str(name), tuple(str(said).split("|")), pixels, str(kind), bool(held_out))


def measure_tokenizer(
    settings: Settings, model: vq.Model, known: dict[str, Any], pool: ThreadPoolExecutor
) -> dict[str, float]:
    """PSNR on held-out and on training pictures, and how the codes are used; writes a contact sheet."""
    held, train = known["held_out"], ~known["held_out"] & (known["kinds"] == "original")
    report, sheets = dict[str, float](), list[data.Pixels]()
    for name, which in (("held_out", held), ("train", train)):
        pictures = known["pixels"][which]
        codes = vq.encode(model, torch.from_numpy(pictures), pool)
        made = vq.decode(model, codes, pool)
        report[f"psnr_{name}"] = vq.psnr(made, pictures)
        some = range(0, len(pictures), max(1, len(pictures) // 48))
        sheets += [side for i in some for side in (pictures[i], made[i])]
        if name == "train":
            report |= vq.usage(codes, settings.codes)
            report["same_code_without_white_rule"] = vq.plain_agreement(model, codes, pictures)
    sheet = data.contact_sheet(sheets, [""] * len(sheets), 24, 1)
    sheet.save(settings.folder / "reconstructions.png")
    return report


@dataclass(frozen=True)
class Corpus:
    """Codes of pictures with their captions as token ids, and how to take a training sequence from them."""

    codes: Tensor  # [R, 256]
    prompts: list[list[list[int]]]  # of each row: the ways to ask for it
    windows: dict[str, Windows]  # over the rows for training, by kind
    held_out: Tensor  # rows of pictures never trained on, as they are
    tokenizer: CaptionTokenizer
    vocabulary: ar.Vocabulary

    def prompt(self, row: int, no_caption: float) -> list[int]:
        """One way to ask for a row, or no words at all."""
        if float(torch.rand(())) < no_caption:
            return self.vocabulary.unconditional
        ways = self.prompts[row]
        return ways[int(torch.randint(len(ways), ()))]


def corpus(settings: Settings) -> Corpus:
    """What the codes stage wrote."""
    known = stored(settings)
    with np.load(settings.folder / "codes.npz") as arrays:
        codes, owners = torch.from_numpy(arrays["codes"].astype(np.int64)), arrays["owners"]
    tokenizer = AutoTokenizer.from_pretrained(settings.folder / "captions")
    asked = [[tokenizer(words)["input_ids"] for words in ways] for ways in all_wordings(known)]
    first = np.concatenate([[True], owners[1:] != owners[:-1]])
    held_out = torch.from_numpy(np.flatnonzero(known["held_out"][owners] & first))
    return Corpus(
        codes=codes,
        prompts=[asked[owner] for owner in owners],
        windows=windows_by_kind(settings, known, owners),
        held_out=held_out,
        tokenizer=tokenizer,
        vocabulary=ar.Vocabulary.of(tokenizer, settings.codes),
    )


def llama(settings: Settings, role: str, vocabulary: ar.Vocabulary) -> LlamaForCausalLM:
    """Return a fresh target or draft with two key heads and tied embeddings."""
    prefix = "draft_" if role == "draft" else ""
    hidden, head_dim, layers, intermediate = (
        int(getattr(settings, prefix + name)) for name in ("hidden", "head_dim", "layers", "intermediate")
    )
    config = LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // head_dim,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=settings.positions,
        tie_word_embeddings=True,
        bos_token_id=vocabulary.special("<bos>"),
        eos_token_id=vocabulary.special("<eoi>"),
        pad_token_id=vocabulary.special("<pad>"),
    )
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)  # every layer starts as the identity
    cast(nn.Module, model).to(settings.device)
    return model


def trained(settings: Settings, role: str, vocabulary: ar.Vocabulary) -> LlamaForCausalLM:
    """Return the target or draft of the newest checkpoint, for inference."""
    model = llama(settings, role, vocabulary)
    load_weights(model, settings.folder / role)
    cast(nn.Module, model).eval().requires_grad_(False)
    return model


def target_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Train the target to predict the next code."""
    known = corpus(settings)
    model = llama(settings, "target", known.vocabulary)
    table = known.codes[np.concatenate([w.values for w in known.windows.values()])]

    def loss(rows: Tensor, done: float) -> Tensor:
        codes = known.codes[rows.flatten().cpu()]
        prompts = [known.prompt(row, settings.no_caption) for row in rows.flatten().tolist()]
        seen = ar.corrupted(codes, table, settings.corruption)
        return ar.next_code_loss(model, prompts, seen, codes, known.vocabulary)

    shares = {"original": settings.original_share, "recoloured": 1 - settings.original_share}
    schedule = settings.schedule(settings.target_minutes, 1.0, settings.micro_batch)
    trainer = Trainer(model, settings.folder / "target", schedule, loss, pool)
    trainer.run(lambda seen, n: batches(known.windows, shares, seen, settings.batch, n))


def lessons(
    settings: Settings, target: LlamaForCausalLM, known: Corpus, pool: ThreadPoolExecutor
) -> ar.Lessons:
    """Return what the draft learns from, kept in a file for the next time."""
    path = settings.folder / "lessons.safetensors"
    if path.exists():
        return ar.Lessons.load(path)
    rows = np.random.default_rng(settings.seed).permutation(
        np.concatenate([w.values for w in known.windows.values()])
    )

    def prompts_from(start: int, count: int) -> tuple[list[int], list[list[int]]]:
        some = [int(rows[i % len(rows)]) for i in range(start, start + count)]
        return some, [known.prompt(row, 0.0) for row in some]

    def read(job: int) -> tuple[list[list[int]], ar.Sampled]:
        some, prompts = prompts_from(4 * job, 4)
        return prompts, ar.reread(target, prompts, known.codes[some], known.vocabulary)

    def drawn(job: int) -> tuple[list[list[int]], ar.Sampled]:
        count = settings.draw_batch
        prompts = prompts_from(count * job, count)[1]
        warmth, length = torch.linspace(0.6, 1.0, count), known.codes.shape[1]
        return prompts, ar.draw(target, prompts, known.vocabulary, length, settings.guidance, warmth, job)

    jobs = ((read, settings.lesson_rows // 4), (drawn, settings.lesson_draws // settings.draw_batch))
    parts = [ar.collect(job, n, settings.lesson_minutes, pool, settings.workers) for job, n in jobs]
    ar.lessons_of(*parts).save(path)
    return ar.Lessons.load(path)


def draft_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Distil the target into the draft, with guidance, on real pictures and on those that it drew."""
    known = corpus(settings)
    model = llama(settings, "draft", known.vocabulary)
    target = trained(settings, "target", known.vocabulary)
    taught = lessons(settings, target, known, pool)
    print("lessons", len(taught.drawn), int(taught.drawn.sum()), flush=True)
    some = taught.hidden[::8, 0].flatten(0, 1)[:20000].to(settings.device, torch.float32)
    start = distil.low_rank_head(target.lm_head.weight, some, settings.draft_hidden)
    model.get_input_embeddings().load_state_dict({"weight": start})

    def loss(rows: Tensor, done: float) -> Tensor:
        at = rows.flatten().cpu()
        with torch.no_grad():
            c, u = ar.head(target, taught.hidden[at].to(settings.device)).unbind(1)
        prompts = [taught.prompt(row) for row in at.tolist()]
        dc, du = ar.both_logits(model, prompts, taught.codes[at], known.vocabulary)
        mixed = ar.guided(c, u, settings.guidance).softmax(-1)
        guided = distil.distillation_loss(mixed, ar.guided(dc, du, settings.guidance), done)
        plain = distil.distillation_loss(c.softmax(-1), dc, done) + distil.distillation_loss(
            u.softmax(-1), du, done
        )
        return 0.7 * guided + 0.15 * plain

    rows = {
        name: torch.nonzero(taught.drawn == flag).flatten().numpy()
        for name, flag in (("read", 0), ("drawn", 1))
    }
    windows = {name: Windows(some, settings.seed, jitter=False) for name, some in rows.items()}
    schedule = settings.schedule(settings.draft_minutes, 1.0, settings.draft_micro_batch)
    trainer = Trainer(model, settings.folder / "draft", schedule, loss, pool)
    trainer.run(lambda seen, n: batches(windows, {"read": 0.4, "drawn": 0.6}, seen, settings.draft_batch, n))


def agreement(
    settings: Settings, target: LlamaForCausalLM, draft: LlamaForCausalLM, prompts: list[list[int]],
    codes: Tensor, known: Corpus, pool: ThreadPoolExecutor,
) -> dict[str, float]:  # fmt: skip
    """Expected acceptance of one drafted code, guided and not, and how often argmaxes agree."""

    @torch.inference_mode()
    def compare(at: Tensor) -> Tensor:
        some = [prompts[i] for i in at.tolist()]
        pairs = [ar.both_logits(model, some, codes[at], known.vocabulary) for model in (target, draft)]
        (pc, _), (qc, _) = pairs
        p, q = (ar.guided(*pair, settings.guidance) for pair in pairs)
        accepted = [distil.acceptance(p, q, warmth).mean() for warmth in (1.0, 0.7)]
        same = (p.argmax(-1) == q.argmax(-1)).float().mean()
        return torch.stack([*accepted, distil.acceptance(pc, qc, 1.0).mean(), same]).cpu() * len(at)

    totals = torch.stack(list(pool.map(compare, torch.arange(len(prompts)).split(2)))).sum(0) / len(prompts)
    names = ("acceptance_at_1.0", "acceptance_at_0.7", "acceptance_unguided_at_1.0", "same_argmax")
    return dict(zip(names, totals.tolist(), strict=True))


def nats_per_code(
    model: LlamaForCausalLM, prompts: list[list[int]], codes: Tensor, known: Corpus, pool: ThreadPoolExecutor
) -> float:
    """Mean nats per code of codes `[N, S]` behind their prompts."""

    @torch.inference_mode()
    def loss(at: Tensor) -> float:
        some = codes[at]
        return len(at) * float(
            ar.next_code_loss(model, [prompts[i] for i in at.tolist()], some, some, known.vocabulary)
        )

    return sum(pool.map(loss, torch.arange(len(codes)).split(4))) / len(codes)


def measure(
    settings: Settings,
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    known: Corpus,
    pool: ThreadPoolExecutor,
) -> dict[str, Any]:
    """Nats per code and agreement: on held-out pictures, on training pictures, and on the demo's own."""
    report: dict[str, Any] = {}
    firsts = known.windows["original"].values[:: settings.views]
    some = firsts[:: max(1, len(firsts) // 64)]
    for name, at in (("held_out", known.held_out), ("train", torch.from_numpy(some))):
        codes, prompts = known.codes[at], [known.prompts[row][0] for row in at.tolist()]
        empty = [known.vocabulary.unconditional] * len(prompts)
        report[name] = {
            "target_nats_per_code": nats_per_code(target, prompts, codes, known, pool),
            "target_nats_per_code_without_caption": nats_per_code(target, empty, codes, known, pool),
            "draft_nats_per_code": nats_per_code(draft, prompts, codes, known, pool),
            **agreement(settings, target, draft, prompts, codes, known, pool),
        }
    prompts = [list(known.tokenizer(caption)["input_ids"]) for caption in DEMO]
    drawn = draw_demo(settings, target, prompts, known)
    return report | {"drawn": agreement(settings, target, draft, prompts, drawn, known, pool)}


def draw_demo(
    settings: Settings, target: LlamaForCausalLM, prompts: list[list[int]], known: Corpus
) -> Tensor:
    """Codes `[32, 256]` of the demo captions, each drawn once; writes the contact sheet."""
    warmth, length = torch.full((len(prompts),), 0.9), known.codes.shape[1]
    codes = ar.draw(target, prompts, known.vocabulary, length, settings.guidance, warmth, settings.seed).codes
    with torch.inference_mode():
        grid = codes.view(-1, vq.GRID, vq.GRID).to(settings.device)
        made = vq.as_pixels(vq.decode_codes(trained_tokenizer(settings), grid))
    data.contact_sheet(list(made), DEMO).save(settings.folder / "demo.png")
    return codes


def export_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Write tokenizer and models as ordinary folders, and a report on what was written."""
    known, folder = corpus(settings), Path(settings.export)
    shutil.copytree(settings.folder / "vq", folder / "vq", dirs_exist_ok=True)
    ids = {f"{name}_token_id": known.vocabulary.special(f"<{name}>") for name in ("bos", "pad")}
    generation = cast(Any, GenerationConfig)(**ids, eos_token_id=known.vocabulary.special("<eoi>"))
    models, report = dict[str, LlamaForCausalLM](), dict[str, Any]()
    for role in ("target", "draft"):
        model = trained(settings, role, known.vocabulary).bfloat16()
        model.generation_config = generation
        ar.annotate(model, known.vocabulary, vq.GRID, "../vq", settings.guidance)
        model.save_pretrained(folder / role)
        shutil.copytree(settings.folder / "captions", folder / role, dirs_exist_ok=True)
        cast(nn.Module, model).float()  # the rounded weights, in a type that every CPU is fast at
        models[role] = model
        report[f"{role}_parameters"] = model.num_parameters()
    report["tokenizer_parameters"] = trained_tokenizer(settings).num_parameters()
    report["tokenizer"] = json.loads((settings.folder / "tokenizer.json").read_text("utf-8"))
    report |= measure(settings, models["target"], models["draft"], known, pool)
    text = json.dumps(report, indent=2)
    (settings.folder / "report.json").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)


STAGES = {
    "data": data_stage,
    "tokenizer": tokenizer_stage,
    "codes": codes_stage,
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
