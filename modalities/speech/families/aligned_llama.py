"""Phonemes and codes of one codebook in one vocabulary, run by an ordinary Llama: the embedded format.

A stream is the voice, the phonemes, begin-of-speech, then one code a frame, and end-of-speech. What makes a
small model speak is that text and sound share one scale of positions: a phoneme stands where its sound is
to be expected. Begin-of-speech has position 0 and code t position t + 1; a symbol of the text has the
position of the frames that those before it take, rounded. The folder is one of transformers'
``LlamaForCausalLM`` with a tokenizer, whose config.json says besides ::

    "multispec": {"modality": "speech", "codec": "../codec", "frame_rate": 50,
                  "codes": {"offset": 141, "size": 1000}, "begin_of_speech": 139, "end_of_speech": 140,
                  "text": "phonemes", "pronunciation": "../pronunciation", "text_scale": 3.15,
                  "durations": {"'i:": 6.1, "t": 3.4}, "voices": ["man", "woman"], "text_limit": 96,
                  "sampling": {"temperature": 0.8}}

``text_scale`` is how many frames a symbol of the text takes, where ``durations`` has none of its own. With
``"text": "characters"`` the tokenizer reads the text itself, and there is no ``pronunciation``. A voice is
the symbol ``<voice>`` of the tokenizer, and ``codec`` any folder that ``codecs.load`` reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer

from multispec.cache import RaggedCache
from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError
from multispec.guidance import Guidance
from multispec.modalities.speech.codecs import load as load_codec
from multispec.modalities.speech.codecs.xcodec2 import Xcodec2Codec
from multispec.modalities.speech.family import SpeechCodec
from multispec.modalities.speech.layouts import Flattened
from multispec.modalities.speech.pronunciation import Pronunciation
from multispec.modalities.speech.reading import read_out
from multispec.protocols import MAX_NODES, Capabilities, Scores, Target, TargetSession
from multispec.sampling import Sampling
from multispec.stream import Draft, Prompt, Slot, StreamSpec
from multispec.targets.causal import attention_of, context_length, refuse_meta, tolerance
from multispec.targets.fast import Maker
from multispec.targets.fused import FusedForward, as_it_is
from multispec.targets.loading import load_model
from multispec.targets.masks import Pass
from multispec.targets.native import attempted
from multispec.targets.ragged import Forward, Layered, RaggedSession, entries, entry_bytes
from multispec.tree import path_to


def fits(config: Any) -> bool:
    """True for a config with a "multispec" part whose modality is "speech"."""
    own = getattr(config, "multispec", None)
    return isinstance(own, dict) and own.get("modality") == "speech"


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> AlignedLlama:
    """The model in a folder, with its codec and its pronunciation.

    Raises:
        ModelLoadError: a part that is missing, or parts that do not belong together.
        UnsupportedError: a Llama of another kind than this format has.
    """
    model = load_model(name_or_path, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    own = described(model.config, name_or_path)
    tokenizer = _tokenizer(name_or_path)
    codec = load_codec(Path(name_or_path) / own.codec, device=model.device)
    _require_fit(name_or_path, model.config, tokenizer, codec, own)
    words = None if own.text == "characters" else Pronunciation.load(Path(name_or_path) / own.pronunciation)
    codec = bounded(codec) if isinstance(codec, Xcodec2Codec) else codec
    scale = Scale.of(tokenizer, own, int(model.config.vocab_size))
    return AlignedLlama(AlignedTarget(model, scale), codec, tokenizer, words, own)


def _require_fit(where: str | Path, config: Any, tokenizer: Any, codec: SpeechCodec, own: Described) -> None:
    """Refuse parts that were not made for each other."""
    rate = codec.sampling_rate / codec.hop
    if (codec.cardinality, codec.num_codebooks, rate) != (own.codes, 1, own.frame_rate):
        raise ModelLoadError(
            f"{str(where)!r} speaks {own.frame_rate:g} times a second with {own.codes} codes in one "
            f"codebook; its codec {own.codec!r} has {rate:g} times a second {codec.num_codebooks} of "
            f"{codec.cardinality}. "
            "Train or copy both together."
        )
    last, known = own.offset + own.codes, tokenizer.get_vocab()
    lacking = [voice for voice in own.voices if f"<{voice}>" not in known]
    if last > config.vocab_size or lacking:
        raise ModelLoadError(
            f"{str(where)!r} has codes up to {last} in a vocabulary of {config.vocab_size} symbols, and its "
            f"tokenizer lacks the voices {lacking}. Copy config.json and tokenizer.json from one training."
        )


def bounded(codec: Xcodec2Codec) -> Xcodec2Codec:
    """The codec with the reach of its own decoder: few frames, where all that hears more has weights of zero.

    Then what is left is a convolution, layers that see one frame, and the overlap of the inverse transform.
    """
    decoder = codec.model.acoustic_decoder
    blocks = (*decoder.prior_net, *decoder.post_net)
    far = [layer.self_attn.o_proj.weight for layer in decoder.layers]
    far += [weight for block in blocks for weight in block.conv2.parameters()]
    if any(bool(weight.any()) for weight in far):
        return codec
    frames = decoder.embed.kernel_size[0] // 2 + -(-decoder.head.n_fft // (2 * codec.hop))
    return replace(codec, reach=(frames, frames))


def _tokenizer(name_or_path: str | Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"No tokenizer can be read from {str(name_or_path)!r}: {str(error).splitlines()[0]} "
            "Copy tokenizer.json and tokenizer_config.json beside the model."
        ) from error


@dataclass(frozen=True, kw_only=True)
class Described:
    """What config.json says of the speech."""

    codec: str
    offset: int
    codes: int
    frame_rate: float
    begin: int
    end: int
    text: Literal["phonemes", "characters"]
    pronunciation: str
    text_scale: float
    durations: Mapping[str, float]
    voices: tuple[str, ...]
    text_limit: int
    sampling: Sampling


def described(config: Any, where: str | Path) -> Described:
    """What the "multispec" part of a config says.

    Raises:
        ModelLoadError: something is missing or of the wrong kind.
    """
    own = config.multispec
    try:
        if own["text"] not in ("phonemes", "characters"):
            raise ValueError(own["text"])
        return Described(
            codec=str(own["codec"]),
            offset=int(own["codes"]["offset"]),
            codes=int(own["codes"]["size"]),
            frame_rate=float(own["frame_rate"]),
            begin=int(own["begin_of_speech"]),
            end=int(own["end_of_speech"]),
            text=own["text"],
            pronunciation=str(own["pronunciation"]) if own["text"] == "phonemes" else "",
            text_scale=float(own["text_scale"]),
            durations={str(name): float(frames) for name, frames in own.get("durations", {}).items()},
            voices=tuple(map(str, own.get("voices", ()))),
            text_limit=int(own.get("text_limit", 200)),
            sampling=Sampling(**own.get("sampling", {})),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(
            f"config.json in {str(where)!r} does not describe its speech: {error!r} in 'multispec' "
            f"({own!r}). It needs codec, frame_rate, codes with offset and size, begin_of_speech, "
            "end_of_speech, text_scale, text ('phonemes' or 'characters') and, for phonemes, pronunciation."
        ) from error


@dataclass(frozen=True)
class Scale:
    """The positions of a stream: ``frames [V]`` that each symbol takes, behind ``begin`` one each.

    >>> Scale(torch.tensor([2.4, 2.4, 0.0]), begin=2).places(torch.tensor([0, 1, 1, 2, 7, 8]))
    tensor([0, 2, 5, 0, 1, 2])
    """

    frames: Tensor
    begin: int

    @staticmethod
    def of(tokenizer: Any, own: Described, vocab_size: int) -> Scale:
        """What a config says of the symbols of a tokenizer; special symbols take no time."""
        frames = torch.zeros(vocab_size, dtype=torch.float64)
        special = set(tokenizer.all_special_ids)
        for symbol, at in tokenizer.get_vocab().items():
            if at not in special and at < vocab_size:
                frames[at] = own.durations.get(symbol, own.text_scale)
        return Scale(frames, own.begin)

    def start(self, ids: Int[Tensor, " S"]) -> int:
        """The index of begin-of-speech; that of the last symbol where there is none."""
        found = (ids == self.begin).nonzero()
        return int(found[0, 0]) if len(found) else len(ids) - 1

    def places(self, ids: Int[Tensor, " S"]) -> Int[Tensor, " S"]:
        """The position of every symbol."""
        start = self.start(ids)
        taken = self.frames[ids[:start]]
        text = (taken.cumsum(0) - taken).round().long()
        return torch.cat([text, torch.arange(len(ids) - start)])


class AlignedForward:
    """A ``ragged.Forward`` of one batch, which gives every pass the positions of its ``scale``."""

    def __init__(self, inner: Forward, scale: Scale, prompts: Sequence[Prompt]) -> None:
        self.layers, self.attention, self.like = inner.layers, inner.attention, inner.like
        self._inner = inner
        self._places = [scale.places(prompt.ids) for prompt in prompts]
        self._starts = [scale.start(prompt.ids) for prompt in prompts]

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run all layers."""
        return self._inner(ids, self._moved(step, ids.shape[1]), cache, keep)

    def _moved(self, step: Pass, width: int) -> Pass:
        if step.prefill:
            table = torch.zeros((len(step.rows), width), dtype=torch.long)
            for place, row in enumerate(step.rows):
                table[place, : len(self._places[row])] = self._places[row]
            return step._replace(table=table.to(self.like.device))
        if step.table is None:
            start = self._starts[step.rows[0]]
            return step._replace(start=step.start - start, end=step.end - start)
        starts = torch.tensor([self._starts[row] for row in step.rows], device=self.like.device)
        return step._replace(table=step.table - starts[:, None])


class AlignedTarget:
    """A Llama over a ``scale`` of positions; ragged batches and trees, compared once with a plain pass.

    Raises:
        UnsupportedError: a model whose arithmetic is not that of this format.
    """

    def __init__(self, model: Any, scale: Scale) -> None:
        refuse_meta(model)
        if not FusedForward.fits(model):
            raise UnsupportedError(
                f"Models of this format are a LlamaForCausalLM with the activation silu and plain rotary "
                f"positions: got {type(model).__name__} with {model.config.hidden_act!r} and "
                f"{getattr(model.config, 'rope_parameters', None)!r}. Export it as one."
            )
        self.model, self.scale = model.eval(), scale
        self.context_length = context_length(model)
        self.device: torch.device = next(model.parameters()).device
        self.spec = StreamSpec(slots=(Slot(size=int(model.config.vocab_size)),))
        self._entry = 0
        self.prepare("auto")

    def prepare(self, fast: str, /) -> None:
        """Make the linear maps ready the way ``fast``: see ``targets.CausalTarget``.

        Raises:
            UnknownNameError: no such way.
            UnsupportedError: no kernels for it; a model that runs otherwise that way.
        """
        maker, attention, positions = Maker(fast), attention_of(self.model), self.context_length or 0
        native = attempted(self.model, attention, positions) if fast == "auto" else None
        make = maker if maker.exact else as_it_is
        inner: Layered = native or FusedForward(self.model, attention, make, positions)
        self._inner: Forward = inner
        self._check()
        if not maker.exact:
            self._inner = inner.with_linear(maker)
        self.capabilities = Capabilities(
            way=AlignedForward.__name__,
            weights=str(maker.prepared) if native is None else native.held,
            changes="" if maker.exact else f"weights in {fast}",
        )

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """Open a session over these prompts."""
        return RaggedSession(self._bind(prompts), prompts, capacity, nodes, self._bind)

    def _bind(self, prompts: Sequence[Prompt]) -> AlignedForward:
        return AlignedForward(self._inner, self.scale, prompts)

    def cache_bytes(self, prompt: Prompt, capacity: int, /) -> int:
        """Bytes for a row that may grow to so many symbols, found once by running a prompt."""
        if not self._entry:
            self._entry = entry_bytes(self._bind([prompt]), prompt)
        return self._entry * entries(capacity, MAX_NODES)

    @torch.inference_mode()
    def _check(self) -> None:
        size, begin = self.spec.vocab_size, self.scale.begin
        prompts = [
            Prompt(ids=torch.tensor(ids))
            for ids in ([3 % size, 5 % size, 7 % size, begin], [4 % size, begin])
        ]
        session = self.begin(prompts, [16, 16], 4)
        session.prefill()
        tree = Draft(tokens=torch.tensor([1 % size, 2 % size, 3 % size]), parents=(-1, -1, 1))
        drafts, roots = [tree, Draft.chain([5 % size])], [6 % size, 4 % size]
        scores = session.score([0, 1], roots, drafts)
        far = max(self._far(prompts, roots, drafts, scores))
        limit = tolerance(self._inner.like.dtype)
        if not far <= limit:  # NaN is no agreement
            raise UnsupportedError(
                "This model runs here otherwise than by its plain forward pass: logits differ by "
                f"{far:.2g} of their deviation, the limit is {limit:.2g}. Report the checkpoint and "
                "its config."
            )

    def _far(
        self, prompts: Sequence[Prompt], roots: Sequence[int], drafts: Sequence[Draft], scores: Scores
    ) -> list[float]:
        far = []
        for prompt, root, draft, found in zip(prompts, roots, drafts, scores.logits, strict=True):
            for node in range(-1, len(draft)):
                path = [draft.ids[step] for step in path_to(draft.parents, node)]
                expected = self.plain(torch.cat([prompt.ids, torch.tensor([root, *path])]))[-1]
                off = (found[node + 1] - expected).abs().max() / (expected.std() + 1e-12)
                far.append(float(off))
        return far

    @torch.inference_mode()
    def plain(self, ids: Int[Tensor, " S"]) -> Tensor:
        """Logits ``[S, V]`` of a whole stream by the model's own forward pass."""
        # Without a mask, positions that do not count up are taken for several packed sequences.
        mask = torch.ones((1, len(ids)), dtype=torch.long, device=self.device)
        places = self.scale.places(ids)[None].to(self.device)
        out = self.model(input_ids=ids[None].to(self.device), attention_mask=mask, position_ids=places)
        logits: Tensor = out.logits[0]
        return logits


@dataclass(frozen=True)
class AlignedLlama:
    """One loaded model of this format; see the module. ``words`` is None where it reads characters."""

    target: Target
    codec: SpeechCodec
    tokenizer: Any
    words: Pronunciation | None
    own: Described
    guidance: Guidance = field(default_factory=lambda: Guidance(scale=1.0))

    @property
    def sampling(self) -> Sampling:
        """What it was evaluated with."""
        return self.own.sampling

    @property
    def voices(self) -> tuple[str, ...]:
        """The voices it was trained on, the first one its own."""
        return self.own.voices

    @property
    def text_limit(self) -> int:
        """The longest sentences that it was trained on."""
        return self.own.text_limit

    @cached_property
    def layout(self) -> Flattened:
        """One code a frame, until end-of-speech."""
        return Flattened(
            codes_per_book=self.own.codes,
            order=(0,),
            offsets=(self.own.offset,),
            vocab_size=self.target.spec.vocab_size,
            end=self.own.end,
        )

    @cached_property
    def _spec(self) -> StreamSpec:
        return self.layout.spec

    def layout_of(self, prompt: Prompt, /) -> Flattened:
        """The same for every prompt."""
        return self.layout

    def read(self, text: str, /) -> str:
        """Numbers, abbreviations and signs in words.

        Raises:
            PromptError: what cannot be said.
        """
        return read_out(text)

    def prompt(self, text: str, voice: str | None = None, /) -> Prompt:
        """The voice, the text, begin-of-speech.

        Raises:
            PromptError: a text that it cannot read, or that leaves no room for its sound.
            UnknownNameError: an unknown voice.
        """
        said = text if self.words is None else " ".join(self.words.symbols(text))
        ids: list[int] = self.tokenizer(said, add_special_tokens=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        if not ids or (unknown is not None and unknown in ids):
            raise PromptError(
                f"This model's tokenizer has no symbol for a part of {text!r}, read as {said!r}. Write it in "
                "words, in letters from a to z."
            )
        made = torch.tensor([*self._voice(voice), *ids, self.own.begin])
        self._require_room(text, made)
        return Prompt(ids=made, spec=self._spec, text=text)

    def _voice(self, voice: str | None) -> list[int]:
        if voice is not None and voice not in self.voices:
            raise UnknownNameError("voice", voice, self.voices)
        if not self.voices:
            return []
        found: int = self.tokenizer.convert_tokens_to_ids(f"<{voice or self.voices[0]}>")
        return [found]

    def _require_room(self, text: str, ids: Tensor) -> None:
        limit, frames = self.target.context_length, int(self._scale.frames[ids].sum())
        if limit is not None and len(ids) + frames > limit:
            raise PromptError(
                f"This model's context holds {limit} symbols: got a text of {len(ids)}, whose sound takes "
                f"about {frames}. Split {text[:40]!r} ... into sentences, as "
                "multispec.modalities.speech.speak does."
            )

    @cached_property
    def _scale(self) -> Scale:
        return Scale.of(self.tokenizer, self.own, self.target.spec.vocab_size)

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """Its voice without words, or with those of ``negative``.

        Raises:
            UnsupportedError: without a negative, since it was never trained without words.
        """
        if negative is None:
            raise UnsupportedError(
                "This model was never trained without a text, so there is nothing to guide away from. Leave "
                "guidance at 1, or give a negative text."
            )
        return self.prompt(negative)
