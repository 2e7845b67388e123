"""Train the speech demo models on espeak-ng: a codec, a small Llama from phonemes to codes, distilled draft.

    python recipes/train_speech.py --books ../shared/data/text

Stages: data, spelling, codec, codes, recogniser, target, draft, export, evaluate. Each resumes from what it
left in `--out`, and runs alone with `--stage`; `--codec-minutes 60` trains a codec of 45 minutes on (delete
codes.npz, then, and what was trained on it). `--sentences 30000` adds to 12,000 that are there.
Learning rates follow the clock, so a stage ends within its minutes on any machine, busy or not.

The sentences come from books and are spoken by espeak-ng (Debian: apt-get install espeak-ng). What is
exported speaks without it: words have the phonemes that espeak-ng gave them, and others are spelled out by
a small model. One of forty sentences is never trained on; those are what the report is about.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Xcodec2FeatureExtractor,
    Xcodec2Model,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes are not installed

from multispec.modalities.speech.pronunciation import Pronunciation, Spelling, letters_of  # noqa: E402
from recipes import _speech_codec as sound  # noqa: E402
from recipes import _speech_data as data  # noqa: E402
from recipes import _speech_models as ar  # noqa: E402
from recipes import _speech_recogniser as judge  # noqa: E402
from recipes import _stages  # noqa: E402
from recipes import _text_distil as distil  # noqa: E402
from recipes._text_data import Windows  # noqa: E402
from recipes._text_trainer import Loss, Schedule, Trainer, batches, load_weights  # noqa: E402


@dataclass(frozen=True)
class Settings:
    """Settings of the recipe; every field is a command-line flag of the same name."""

    stage: str = "all"
    books: str = "../shared/data/text"  # a folder of plain texts
    texts: str = "../shared/data/sentences"  # more texts, whose words are pronounced but not spoken
    speech: str = ""  # a folder of prepared speech (speech-*.json, speech-*.npy, words.json), not espeak-ng
    out: str = "runs/speech"
    export: str = "assets/speech"
    smoke: bool = False  # tiny models, seconds per stage: checks that every stage runs
    minutes: float = 0.0  # of each training stage; 0: the minutes below
    spelling_minutes: float = 3.0
    codec_minutes: float = 45.0
    recogniser_minutes: float = 15.0
    target_minutes: float = 90.0
    draft_minutes: float = 20.0
    lesson_minutes: float = 8.0  # most time for each of two kinds of lesson
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    workers: int = 2  # micro-batches in flight, one thread each
    seed: int = 0
    sentences: int = 12000  # 0: all
    voices: str = "man=en-us,woman=en-us+f3"  # name=variant of espeak-ng
    levels: str = "8,5,5,5"  # of the codec's lattice: 1,000 codes
    codec_hidden: int = 256
    codec_layers: int = 4
    semantic: int = 128  # widths of the two encoders
    acoustic: int = 8
    crop: int = 64  # frames of a training crop
    crops: int = 8  # of a step
    micro_crops: int = 4
    judge_width: int = 192
    judge_blocks: int = 6
    hidden: int = 256
    intermediate: int = 640
    layers: int = 5
    head_dim: int = 64
    draft_hidden: int = 160
    draft_intermediate: int = 448
    draft_layers: int = 2
    draft_head_dim: int = 40
    positions: int = 640  # phonemes and codes of the longest stream
    batch: int = 16  # sentences of a step
    micro_batch: int = 4
    corruption: float = 0.15  # most wrong codes in a training stream
    temperature: float = 0.8
    lesson_rows: int = 4000  # read by the target, and
    lesson_said: int = 1600  # said by it
    say_batch: int = 16
    evaluated: int = 120  # sentences that were never trained on
    muon_rate: float = 0.01
    adam_rate: float = 0.003
    warmup_share: float = 0.03
    decay_share: float = 0.65
    save_seconds: float = 180.0

    @property
    def folder(self) -> Path:
        """Folder of speech, codes, checkpoints and the report."""
        return Path(self.out)

    @property
    def variants(self) -> dict[str, str]:
        """The variant of espeak-ng behind each voice."""
        pairs = (pair.partition("=") for pair in self.voices.split(","))
        return {name: variant for name, _, variant in pairs}

    @property
    def fsq(self) -> list[int]:
        """Levels of the codec's lattice."""
        return [int(level) for level in self.levels.split(",")]

    def schedule(self, minutes: float, window: int) -> Schedule:
        """The schedule of a training stage over windows of so many sentences, one window a micro-batch."""
        return Schedule(
            minutes=self.minutes or minutes,
            length=window,
            long_length=window,
            long_share=0.0,
            micro_tokens=window,
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
        minutes=settings.minutes or 0.02,
        sentences=40,
        levels="4,4",
        codec_hidden=32,
        codec_layers=1,
        semantic=16,
        acoustic=2,
        crop=8,
        crops=2,
        micro_crops=1,
        judge_width=16,
        judge_blocks=2,
        hidden=32,
        intermediate=64,
        layers=2,
        head_dim=16,
        draft_hidden=16,
        draft_intermediate=32,
        draft_layers=1,
        draft_head_dim=8,
        positions=320,
        batch=4,
        micro_batch=2,
        lesson_minutes=0.01,
        lesson_rows=4,
        lesson_said=2,
        say_batch=2,
        evaluated=2,
    )


def data_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Have sentences spoken and words pronounced, or take what was prepared."""
    folder = settings.folder
    if settings.speech:
        for path in sorted(Path(settings.speech).glob("*.*")):
            if not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
        return
    books = Path(settings.books)
    if not (folder / "words.json").exists():
        variant = next(iter(settings.variants.values()))
        words = json.dumps(data.pronounced(data.words_of(books, Path(settings.texts)), variant))
        (folder / "words.json").write_text(words, encoding="utf-8")
    texts = data.chosen(data.sentences(books), settings.sentences, settings.seed)
    for number, start in enumerate(range(0, len(texts), data.SHARD)):
        if not (folder / f"speech-{number:03}.json").exists():
            some = texts[start : start + data.SHARD]
            data.write_shard(folder, number, some, settings.variants, settings.seed, pool)
            print("sentences", start + len(some), flush=True)


def stored_words(settings: Settings) -> dict[str, str]:
    """Phonemes of words, as espeak-ng gave them."""
    return cast(dict[str, str], json.loads((settings.folder / "words.json").read_text("utf-8")))


def train(
    settings: Settings, model: nn.Module, name: str, minutes: float, rows: NDArray[np.int64], window: int,
    count: int, loss: Loss, pool: ThreadPoolExecutor,
) -> None:  # fmt: skip
    """Train on windows of neighbouring `rows`, `count` rows a step; a shorter budget ends it at once."""
    windows = {"rows": Windows(rows, settings.seed, jitter=window > 1)}

    def feed(seen: dict[str, int], length: int) -> Iterator[dict[str, Tensor]]:
        return batches(windows, {"rows": 1.0}, seen, max(1, count // length), length)

    schedule = settings.schedule(minutes, min(window, len(rows)))
    Trainer(model, settings.folder / name, schedule, loss, pool).run(feed)


def fresh_spelling(settings: Settings, words: dict[str, str]) -> tuple[Spelling, tuple[str, ...]]:
    """An untrained model of spelling, and its phonemes."""
    phonemes = tuple(sorted({name for said in words.values() for name in said.split()}))
    torch.manual_seed(settings.seed)
    return Spelling(len(phonemes)), phonemes


def spelling_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Learn how words are spelled, for those that no book has."""
    words = stored_words(settings)
    model, phonemes = fresh_spelling(settings, words)
    number = {name: i for i, name in enumerate(phonemes, 1)}
    pairs = [(letters_of(word), [number[name] for name in said.split()]) for word, said in words.items()]
    kept = np.array([i for i, word in enumerate(words) if not data.held_out(word)])

    def loss(rows: Tensor, done: float) -> Tensor:
        some = [pairs[i] for i in rows.flatten().tolist()]
        letters = ar.padded([torch.tensor(word) for word, _ in some])
        sizes = [len(word) for word, _ in some]
        found = model(letters, sizes).transpose(0, 1)
        wanted = torch.tensor([one for _, said in some for one in said])
        lengths = torch.tensor([3 * size for size in sizes]), torch.tensor([len(said) for _, said in some])
        return F.ctc_loss(found, wanted, *lengths, zero_infinity=True)

    train(settings, model, "spelling", settings.spelling_minutes, kept, 32, 64, loss, pool)
    found = Pronunciation(words, model.eval(), phonemes)
    found.save(settings.folder / "pronunciation")
    unseen = [word for word in words if data.held_out(word)][:500]
    spelled = [[number[name] for name in found.spelled(word)] for word in unseen]
    wanted = [[number[name] for name in words[word].split()] for word in unseen]
    right = sum(map(list.__eq__, spelled, wanted)) / len(unseen)
    write(settings, "spelling", {
        "words": len(words), "phonemes": len(phonemes), "unseen_words_right": right,
        "unseen_words_phoneme_error": judge.error_rate(spelled, wanted),
    })  # fmt: skip


def write(settings: Settings, name: str, found: dict[str, Any]) -> None:
    """Keep what a stage found out, for the report."""
    text = json.dumps(found, indent=2)
    (settings.folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(name, json.dumps(found), flush=True)


def fresh_codec(settings: Settings) -> sound.Model:
    """An untrained codec."""
    torch.manual_seed(settings.seed)
    model = sound.codec(
        settings.codec_hidden, settings.codec_layers, settings.fsq, settings.semantic, settings.acoustic
    )
    return model.to(settings.device)


def trained_codec(settings: Settings) -> sound.Model:
    """The codec of the newest checkpoint, for inference."""
    model = fresh_codec(settings)
    load_weights(model, settings.folder / "codec")
    return model.eval().requires_grad_(False)


def crops(speech: data.Speech, rows: Sequence[int], frames: int) -> Tensor:
    """A piece `[B, N]` from anywhere in each sentence; short ones are followed by silence."""
    found = []
    for row in rows:
        wave = speech.wave(row)
        spare = max(0, len(wave) // data.HOP - frames)
        first = int(torch.randint(spare + 1, ())) * data.HOP
        piece = wave[first : first + frames * data.HOP]
        found.append(np.pad(piece, (0, frames * data.HOP - len(piece))))
    return torch.from_numpy(np.stack(found))


def codec_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Train the codec on short pieces."""
    speech, model = data.Speech(settings.folder), fresh_codec(settings)

    def loss(rows: Tensor, done: float) -> Tensor:
        waves = crops(speech, rows.flatten().tolist(), settings.crop)
        # Louder and softer, so that the level is learned too.
        gain = torch.empty(len(waves), 1).uniform_(0.5, 1.0)
        return sound.codec_loss(model, (gain * waves).to(settings.device))

    # Windows of one sentence are put together, a few to a micro-batch.
    schedule = replace(settings.schedule(settings.codec_minutes, 1), micro_tokens=settings.micro_crops)
    windows = {"rows": Windows(speech.train, settings.seed, jitter=False)}
    Trainer(model, settings.folder / "codec", schedule, loss, pool).run(
        lambda seen, length: batches(windows, {"rows": 1.0}, seen, settings.crops, length)
    )


def codes_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Turn every sentence into codes, and find out how long its symbols take."""
    speech, path = data.Speech(settings.folder), settings.folder / "codes.npz"
    if path.exists() and len(np.load(path)["ends"]) == len(speech):
        return
    model = trained_codec(settings)
    model.save_pretrained(settings.folder / "codec-folder")
    codes = list(pool.map(lambda i: sound.encode(model, speech.wave(i)), range(len(speech))))
    words = Pronunciation.load(settings.folder / "pronunciation")
    said = [words.symbols(one.text) for one in speech.sentences]
    tokenizer = ar.phoneme_tokenizer(words.phonemes, list(settings.variants))
    tokenizer.save_pretrained(settings.folder / "symbols")
    write(settings, "durations", symbol_durations(tokenizer, said, codes, speech))
    some = np.concatenate([codes[i] for i in speech.held_out])
    write(
        settings,
        "codec",
        sound.usage(some, int(np.prod(settings.fsq))) | reconstruction(settings, model, pool),
    )
    (settings.folder / "said.json").write_text(json.dumps([" ".join(one) for one in said]), encoding="utf-8")
    ends = np.cumsum([len(one) for one in codes])
    np.savez(path, codes=np.concatenate(codes), ends=ends)


def symbol_durations(
    tokenizer: Any, said: Sequence[Sequence[str]], codes: Sequence[NDArray[np.uint16]], speech: data.Speech
) -> dict[str, Any]:
    """Frames of each symbol by least squares over the training sentences, and of any symbol."""
    ids = tokenizer.get_vocab()
    counts = np.zeros((len(speech.train), len(tokenizer)))
    for row, i in enumerate(speech.train):
        np.add.at(counts[row], [ids[name] for name in said[i]], 1)
    frames = np.array([len(codes[i]) for i in speech.train], dtype=np.float64)
    met = counts.sum(0) > 0
    found = ar.durations(counts[:, met], frames)
    off = np.abs(counts[:, met] @ found - frames) / frames
    names = [name for name, at in sorted(ids.items(), key=lambda pair: pair[1]) if met[at]]
    return {
        "text_scale": float(frames.sum() / counts.sum()),
        "durations": {name: round(float(one), 2) for name, one in zip(names, found, strict=True)},
        "text_limit": max(len(one.text) for one in speech.sentences),
        "most_frames": int(frames.max()),
        "mean_relative_error": float(off.mean()),
    }


def reconstruction(settings: Settings, model: sound.Model, pool: ThreadPoolExecutor) -> dict[str, float]:
    """The codec's loss on sentences that it never heard."""
    speech = data.Speech(settings.folder)

    def loss(i: int) -> float:
        with torch.inference_mode():
            return float(sound.codec_loss(model, torch.from_numpy(speech.wave(i))[None].to(settings.device)))

    return {"held_out_loss": float(np.mean(list(pool.map(loss, speech.held_out[:64].tolist()))))}


def heard_phonemes(speech: data.Speech) -> dict[str, int]:
    """Numbers from 1 of the phonemes that espeak-ng spoke, stress aside."""
    names = sorted({name for one in speech.sentences for name in one.phonemes.split()})
    return {name: i for i, name in enumerate(names, 1)}


def fresh_judge(settings: Settings, speech: data.Speech) -> judge.Recogniser:
    """An untrained recogniser."""
    torch.manual_seed(settings.seed)
    return judge.Recogniser(len(heard_phonemes(speech)), settings.judge_width, settings.judge_blocks)


def by_length(speech: data.Speech) -> NDArray[np.int64]:
    """The sentences for training, the short ones first."""
    sizes = np.array([speech.sentences[i].samples for i in speech.train])
    return cast(NDArray[np.int64], speech.train[sizes.argsort(kind="stable")])


def recogniser_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Train the recogniser on original sound, of sentences that the models are trained on too."""
    speech = data.Speech(settings.folder)
    model, number = fresh_judge(settings, speech), heard_phonemes(speech)

    def loss(rows: Tensor, done: float) -> Tensor:
        some = rows.flatten().tolist()
        phonemes = [[number[name] for name in speech.sentences[i].phonemes.split()] for i in some]
        return judge.ctc_loss(model, [speech.wave(i) for i in some], phonemes)

    rows, micro = by_length(speech), settings.micro_batch
    train(settings, model, "recogniser", settings.recogniser_minutes, rows, micro, settings.batch, loss, pool)


@dataclass(frozen=True)
class Corpus:
    """Codes of sentences with their symbols, and what the model's ids stand for."""

    speech: data.Speech
    codes: list[Tensor]
    prompts: list[list[int]]
    vocabulary: ar.Vocabulary
    text_limit: int
    most_frames: int

    @cached_property
    def unseen(self) -> list[int]:
        """Sentences that were never trained on, in an order of their own."""
        found = np.random.default_rng(0).permutation(self.speech.held_out)
        return cast(list[int], found.tolist())


def corpus(settings: Settings) -> Corpus:
    """What the codes stage wrote."""
    speech = data.Speech(settings.folder)
    with np.load(settings.folder / "codes.npz") as arrays:
        codes, ends = torch.from_numpy(arrays["codes"].astype(np.int64)), arrays["ends"]
    told = json.loads((settings.folder / "durations.json").read_text("utf-8"))
    said = json.loads((settings.folder / "said.json").read_text("utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(settings.folder / "symbols")
    size = int(np.prod(settings.fsq))
    vocabulary = ar.Vocabulary(tokenizer, size, told["durations"], told["text_scale"])
    return Corpus(
        speech=speech,
        codes=list(codes.tensor_split(ends[:-1].tolist())),
        prompts=[vocabulary.prompt(s, one.voice) for s, one in zip(said, speech.sentences, strict=True)],
        vocabulary=vocabulary,
        text_limit=told["text_limit"],
        most_frames=told["most_frames"],
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
        bos_token_id=vocabulary.begin,
        eos_token_id=vocabulary.end,
        pad_token_id=0,
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
    """Train the target to predict the next code from the text and the codes before."""
    known = corpus(settings)
    model, size = llama(settings, "target", known.vocabulary), known.vocabulary.codes

    def loss(rows: Tensor, done: float) -> Tensor:
        some = rows.flatten().tolist()
        codes = [known.codes[i] for i in some]
        seen = [ar.corrupted(one, size, settings.corruption) for one in codes]
        batch = ar.Batch.of([known.prompts[i] for i in some], codes, known.vocabulary, seen)
        return ar.next_code_loss(model, batch, known.vocabulary)

    rows, micro = by_length(known.speech), settings.micro_batch
    train(settings, model, "target", settings.target_minutes, rows, micro, settings.batch, loss, pool)


def lessons(
    settings: Settings, target: LlamaForCausalLM, known: Corpus, pool: ThreadPoolExecutor
) -> ar.Lessons:
    """Return what the draft learns from, kept in a file for the next time."""
    path = settings.folder / "lessons.safetensors"
    if path.exists():
        return ar.Lessons.load(path)
    rows = np.random.default_rng(settings.seed).permutation(known.speech.train)

    def some(start: int, count: int) -> list[int]:
        return [int(rows[i % len(rows)]) for i in range(start, start + count)]

    def read(job: int) -> tuple[list[list[int]], ar.Said]:
        at = some(4 * job, 4)
        prompts = [known.prompts[i] for i in at]
        return prompts, ar.reread(target, prompts, [known.codes[i] for i in at], known.vocabulary)

    def said(job: int) -> tuple[list[list[int]], ar.Said]:
        count = settings.say_batch
        prompts = [known.prompts[i] for i in some(count * job, count)]
        warmth = torch.linspace(0.5, 1.0, count)
        return prompts, ar.say(target, prompts, known.vocabulary, known.most_frames, warmth, job)

    jobs = ((read, settings.lesson_rows // 4), (said, settings.lesson_said // settings.say_batch))
    parts = [ar.collect(job, n, settings.lesson_minutes, pool, settings.workers) for job, n in jobs]
    ar.Lessons.of(*parts).save(path)
    return ar.Lessons.load(path)


def draft_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Distil the target into the draft, on real codes and on those that it said."""
    known = corpus(settings)
    vocabulary = known.vocabulary
    model = llama(settings, "draft", vocabulary)
    target = trained(settings, "target", vocabulary)
    taught = lessons(settings, target, known, pool)
    print("lessons", len(taught.said), int(taught.said.sum()), flush=True)
    some = taught.hidden[:20000].to(settings.device, torch.float32)
    start = distil.low_rank_head(target.lm_head.weight, some, settings.draft_hidden)
    model.get_input_embeddings().load_state_dict({"weight": start})

    def loss(rows: Tensor, done: float) -> Tensor:
        streams = [taught.stream(row) for row in rows.flatten().tolist()]
        prompts, codes, hidden = zip(*streams, strict=True)
        batch = ar.Batch.of(prompts, codes, vocabulary)
        real = (batch.wanted >= 0).to(settings.device)
        with torch.no_grad():
            p = ar.speech_logits(ar.head(target, torch.cat(hidden).to(settings.device)), vocabulary).softmax(
                -1
            )
        q = ar.speech_logits(ar.head(model, ar.states(model, batch)[real]), vocabulary)
        return distil.distillation_loss(p, q, done)

    order = taught.sizes.sum(1).argsort().numpy()
    train(
        settings,
        model,
        "draft",
        settings.draft_minutes,
        order,
        settings.micro_batch,
        settings.batch,
        loss,
        pool,
    )


def export_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Write codec, pronunciation and models as ordinary folders, in half precision."""
    known, folder = corpus(settings), Path(settings.export)
    codec = trained_codec(settings).half()
    codec.save_pretrained(folder / "codec")
    Xcodec2FeatureExtractor(hop_length=data.HOP).save_pretrained(folder / "codec")
    Pronunciation.load(settings.folder / "pronunciation").save(folder / "pronunciation")
    ids = {"bos_token_id": known.vocabulary.begin, "pad_token_id": 0, "eos_token_id": known.vocabulary.end}
    for role in ("target", "draft"):
        model = trained(settings, role, known.vocabulary).bfloat16()
        model.generation_config = cast(Any, GenerationConfig)(**ids)
        voices = list(settings.variants)
        ar.annotate(model, known.vocabulary, voices, known.text_limit, settings.temperature)
        model.save_pretrained(folder / role)
        shutil.copytree(settings.folder / "symbols", folder / role, dirs_exist_ok=True)
    sizes = {path.name: size_of(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    write(settings, "export", {"megabytes": sizes})


def size_of(folder: Path) -> float:
    """Megabytes of a folder."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 2)


@dataclass(frozen=True)
class Exported:
    """The exported parts, with the rounded weights in a type that every CPU is fast at."""

    codec: sound.Model
    target: LlamaForCausalLM
    draft: LlamaForCausalLM

    @staticmethod
    def load(settings: Settings) -> Exported:
        """What the export stage wrote."""
        folder, kind = Path(settings.export), torch.float32
        codec: Any = Xcodec2Model.from_pretrained(folder / "codec", dtype=kind)
        models = [
            cast(Any, LlamaForCausalLM).from_pretrained(folder / role, dtype=kind).to(settings.device).eval()
            for role in ("target", "draft")
        ]
        return Exported(codec.to(settings.device).eval(), *models)


def spoken(
    settings: Settings, parts: Exported, known: Corpus, rows: Sequence[int], temperature: float,
    pool: ThreadPoolExecutor,
) -> ar.Said:  # fmt: skip
    """Sentences said by the exported target."""
    most = known.most_frames + 50

    def job(start: int) -> ar.Said:
        prompts = [known.prompts[i] for i in rows[start : start + settings.say_batch]]
        warmth = torch.full((len(prompts),), temperature)
        return ar.say(parts.target, prompts, known.vocabulary, most, warmth, settings.seed + start)

    found = list(pool.map(job, range(0, len(rows), settings.say_batch)))
    joined = [[row for part in found for row in getattr(part, name)] for name in ("codes", "hidden", "ended")]
    return ar.Said(*joined)


def judged(
    settings: Settings, known: Corpus, rows: Sequence[int], waves: Sequence[NDArray[np.float32]],
    pool: ThreadPoolExecutor,
) -> dict[str, float]:  # fmt: skip
    """Phoneme errors, distance from espeak-ng's rendering and length of some sentences' sound."""
    speech = known.speech
    model, number = fresh_judge(settings, speech), heard_phonemes(speech)
    load_weights(model, settings.folder / "recogniser")
    model.eval()
    wanted = [[number[name] for name in speech.sentences[i].phonemes.split()] for i in rows]
    found = list(pool.map(lambda wave: judge.recognised(model, wave), waves))
    originals = [speech.wave(i) for i in rows]
    ratios = [len(made) / len(wave) for made, wave in zip(waves, originals, strict=True)]
    return {
        "phoneme_error": judge.error_rate(found, wanted),
        "cepstral_distortion_db": float(np.mean(list(pool.map(judge.cepstral_distortion, waves, originals)))),
        "duration_ratio": float(np.mean(ratios)),
        "duration_ratio_deviation": float(np.std(ratios)),
    }


def agreement(
    parts: Exported, known: Corpus, prompts: Sequence[list[int]], codes: Sequence[Tensor],
    temperature: float, pool: ThreadPoolExecutor,
) -> dict[str, float]:  # fmt: skip
    """Expected acceptance of one drafted code, and how often argmaxes agree; nats per code of the target."""

    @torch.inference_mode()
    def compare(at: int) -> Tensor:
        batch = ar.Batch.of([prompts[at]], [codes[at]], known.vocabulary)
        p, q = (
            ar.speech_logits(ar.head(model, ar.states(model, batch)), known.vocabulary)
            for model in (parts.target, parts.draft)
        )
        accepted = [distil.acceptance(p, q, warmth).sum() for warmth in (1.0, temperature)]
        same = (p.argmax(-1) == q.argmax(-1)).sum()
        nats = F.cross_entropy(p[0], (batch.wanted[0] - known.vocabulary.end).to(p.device), reduction="sum")
        return torch.tensor([*map(float, (*accepted, same, nats)), float(batch.wanted.numel())])

    totals = torch.stack(list(pool.map(compare, range(len(prompts))))).sum(0)
    names = ("acceptance_at_1.0", f"acceptance_at_{temperature}", "same_argmax", "target_nats_per_code")
    return dict(zip(names, (totals[:-1] / totals[-1]).tolist(), strict=True))


def keep_waves(settings: Settings, name: str, waves: Sequence[NDArray[np.float32]]) -> None:
    """Write some sounds, to listen to."""
    folder = settings.folder / "spoken"
    folder.mkdir(exist_ok=True)
    for i, wave in enumerate(waves[:12]):
        soundfile.write(folder / f"{i:02}-{name}.wav", wave, data.RATE)


def evaluate_stage(settings: Settings, pool: ThreadPoolExecutor) -> None:
    """Measure what was exported on sentences that nothing was trained on, and write the report."""
    known, parts = corpus(settings), Exported.load(settings)
    rows = known.unseen[: settings.evaluated]
    report = {name: stored(settings, name) for name in ("spelling", "codec", "export")}
    report["parameters"] = {
        name: sum(p.numel() for p in model.parameters()) for name, model in vars(parts).items()
    }

    def decode(codes: Tensor) -> NDArray[np.float32]:
        return sound.decode(parts.codec, codes.numpy())

    made = {"original": [known.speech.wave(i) for i in rows]}
    made["codec"] = list(pool.map(decode, [known.codes[i] for i in rows]))
    for name, warmth in (("speech", settings.temperature), ("speech_greedy", 0.0)):
        said = spoken(settings, parts, known, rows, warmth, pool)
        made[name] = list(pool.map(decode, said.codes))
        prompts = [known.prompts[i] for i in rows]
        agreed = agreement(parts, known, prompts, said.codes, settings.temperature, pool)
        report[name] = {"ended": float(np.mean(said.ended)), "draft": agreed}
    for name, waves in made.items():
        report[name] = report.get(name, {}) | judged(settings, known, rows, waves, pool)
        keep_waves(settings, name, waves)
    codes = [known.codes[i] for i in rows]
    real = agreement(parts, known, [known.prompts[i] for i in rows], codes, settings.temperature, pool)
    write(settings, "report", report | {"sentences": len(rows), "real_codes": real})


def stored(settings: Settings, name: str) -> dict[str, Any]:
    """What a stage found out."""
    return cast(dict[str, Any], json.loads((settings.folder / f"{name}.json").read_text("utf-8")))


STAGES = {
    "data": data_stage,
    "spelling": spelling_stage,
    "codec": codec_stage,
    "codes": codes_stage,
    "recogniser": recogniser_stage,
    "target": target_stage,
    "draft": draft_stage,
    "export": export_stage,
    "evaluate": evaluate_stage,
}


def parse(argv: Sequence[str] | None) -> Settings:
    """Return the settings given as flags."""
    return _stages.parse(Settings, STAGES, smoke, argv, __doc__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one stage or all of them."""
    _stages.run(parse(argv), STAGES)


if __name__ == "__main__":
    main()
