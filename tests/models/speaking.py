"""Tiny voices: a table with a codec of two convolutions, and a random Llama in the embedded format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DacConfig, DacModel

from multispec.errors import PromptError, UnsupportedError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.speech.family import FrameLayout
from multispec.modalities.speech.reading import read_out
from multispec.protocols import Target
from multispec.sampling import Sampling
from multispec.stream import Allowed, Prompt, Slot, StreamSpec
from multispec.testing import FakeModel
from tests.models import words, zoo

CODES = 16
END = 0
OFFSET = 3
HOP = 80
RATE = 4000


@dataclass(frozen=True)
class TinyCodec:
    """Codes to 20 milliseconds each: a convolution over five frames, then a transposed one over two.

    ``whole`` adds what every frame hears of all others, as attention does.
    """

    num_codebooks: int = 1
    whole: float = 0.0
    cardinality: int = CODES
    sampling_rate: int = RATE
    hop: int = HOP
    seen: list[int] = field(default_factory=list, compare=False)

    @property
    def reach(self) -> tuple[int, int]:
        return (3, 3) if not self.whole else (2**62, 2**62)

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        chance = torch.Generator().manual_seed(0)
        books = torch.randn(self.num_codebooks, CODES, 4, generator=chance)
        over = torch.randn(6, 4, 5, generator=chance) / 4
        up = torch.randn(6, 1, 2 * HOP, generator=chance) * torch.hann_window(2 * HOP) / 8
        return books, over, up

    def codebook(self, level: int, /) -> Float[Tensor, "V C"]:
        return self._weights[0][level]

    def encode(self, waveform: Float[Tensor, "C N"], /) -> Int[Tensor, "T K"]:
        raise UnsupportedError("This codec has no encoder. It needs none.")

    def decode(self, codes: Int[Tensor, "T K"], /) -> Float[Tensor, "C N"]:
        """How many frames it was given is kept in ``seen``."""
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < CODES:
            raise UsageError(f"Codes lie in [0, {CODES}): got {codes.tolist()}.")
        self.seen.append(len(codes))
        books, over, up = self._weights
        frames = sum(books[level][codes[:, level]] for level in range(self.num_codebooks))
        assert isinstance(frames, Tensor)
        features = torch.tanh(F.conv1d(frames.T[None], over, padding=2))
        features = features + self.whole * features.mean(-1, keepdim=True)
        sound = F.conv_transpose1d(features, up, stride=HOP)[0, :, HOP // 2 : -HOP // 2]
        return torch.tanh(sound)


@dataclass(frozen=True, kw_only=True)
class TinyLayout:
    """Frames of ``num_codebooks`` codes one after the other, each codebook with its own ids, and an end."""

    num_codebooks: int = 1
    codes_each: int = CODES

    @property
    def spec(self) -> StreamSpec:
        size = OFFSET + self.num_codebooks * CODES
        return StreamSpec(slots=(Slot(size=size),), end_ids=(END,), grammar=self.grammar, prompt_size=256)

    def grammar(self, generated: Sequence[int], /) -> Allowed:
        """A frame that is begun is finished."""
        level = len(generated) % self.num_codebooks
        own = range(OFFSET + level * CODES, OFFSET + (level + 1) * CODES)
        return Allowed((END, *own)) if level == 0 and generated else Allowed(own)

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        return divmod(position, self.num_codebooks)

    def codes(self, tokens: Sequence[int], /) -> Int[Tensor, "T K"]:
        k = self.num_codebooks
        ids = torch.tensor([one for one in tokens if one != END], dtype=torch.long)
        frames = ids[: len(ids) // k * k].view(-1, k) - OFFSET - torch.arange(k) * CODES
        if len(frames) and not 0 <= int(frames.min()) <= int(frames.max()) < CODES:
            raise UsageError(f"No codes: got {ids.tolist()}.")
        return frames

    def tokens(self, codes: Int[Tensor, "T K"], /) -> Int[Tensor, " S"]:
        return (codes + OFFSET + torch.arange(self.num_codebooks) * CODES).flatten()


@dataclass(frozen=True)
class Tongue:
    """Says one frame for each letter, more or less; ``endless`` says that it never comes to an end.

    It takes texts as they are written; ``Voice`` reads English.
    """

    codec: TinyCodec = field(default_factory=TinyCodec)
    endless: bool = False
    text_limit: int = 20
    voices: Sequence[str] = ("anna", "bert")
    guidance: Guidance = field(default_factory=Guidance)
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def layout(self) -> TinyLayout:
        return TinyLayout(num_codebooks=self.codec.num_codebooks)

    @property
    def target(self) -> Target:
        return self._target

    @cached_property
    def _target(self) -> Target:
        size, chance = self.layout.spec.vocab_size, torch.Generator().manual_seed(1)
        # Neighbouring codes sound alike and follow each other: drafts come true now and then.
        table = torch.randn(size, 2, size, generator=chance, dtype=torch.float64) * 2

        def after(prefix: Sequence[int], prompt_length: int) -> Tensor:
            law = table[prefix[-1] % size, prefix[0] % 2].clone()
            frames = (len(prefix) - prompt_length) / self.codec.num_codebooks
            law[END] = -100.0 if self.endless else 3 * (frames - prompt_length)
            return law

        return FakeModel(after, self.layout.spec, supports_tree=False)

    def prompt(self, text: str, voice: str | None = None, /) -> Prompt:
        wrong = next((one for one in text if not one.isascii()), None)
        if wrong is not None:
            raise PromptError(f"This voice knows ASCII: got {wrong!r}. Write it in ASCII.")
        number = list(self.voices).index(voice) if voice is not None else 0
        return Prompt(ids=torch.tensor([number, *text.encode()]), spec=self.layout.spec)

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        ids = [0] if negative is None else [0, *negative.encode()]
        return replace(prompt, ids=torch.tensor(ids), guidance=None, unconditional=None)

    def layout_of(self, prompt: Prompt, /) -> FrameLayout:
        return self.layout


@dataclass(frozen=True)
class Voice(Tongue):
    """The same, for English: what else is written is turned into words."""

    def read(self, text: str, /) -> str:
        return read_out(text)


# The symbols of words.byte_level() come first, then begin-of-speech, its end, and the codes.
BEGIN_OF_SPEECH, END_OF_SPEECH = 340, 341
FOLDER_OFFSET = 342


def save_codec(folder: Path) -> Path:
    """A random DAC of one codebook at 800 samples a second, eight to a frame."""
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "codebook_dim": 4}
        config = DacConfig(
            downsampling_ratios=(2, 4), n_codebooks=1, codebook_size=CODES, sampling_rate=800, **sizes
        )
        model = DacModel(config).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
                module.reset_parameters()
        model.save_pretrained(folder)
    return folder


def save_language_model(folder: Path, seed: int = 0, context: int = 256, **changes: Any) -> Path:
    """The Llama with its tokenizer of letters; ``changes`` go into the "multispec" part of its config."""
    size = FOLDER_OFFSET + CODES
    sizes: dict[str, Any] = {"vocab_size": size, "max_position_embeddings": context}
    model = zoo.build("llama", seed, initializer_range=0.5, **sizes)
    own = {
        "modality": "speech",
        "codec": "../codec",
        "frame_rate": 100,
        "codes": {"offset": FOLDER_OFFSET, "size": CODES},
        "begin_of_speech": BEGIN_OF_SPEECH,
        "end_of_speech": END_OF_SPEECH,
        "text": "characters",
        "text_scale": 2.0,
        "text_limit": 24,
        "voices": ["s", "pad"],
    }
    model.config.multispec = own | changes
    model.save_pretrained(folder)
    words.byte_level().save_pretrained(folder)
    return folder


def save(folder: Path, **changes: Any) -> Path:
    """``target``, ``draft`` and ``codec`` side by side, as the embedded models lie."""
    save_codec(folder / "codec")
    save_language_model(folder / "target", seed=0, **changes)
    save_language_model(folder / "draft", seed=1, **changes)
    return folder
