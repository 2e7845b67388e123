"""Moshi: Defossez et al. (2024), arXiv 2410.00037, "Moshi: a speech-text foundation model for dialogue".

At each step of 80 ms a Llama over time hears what both sides said, and says a symbol of text; a small
transformer over depth says the codes of Moshi's own sound, from the time model's state and that text. All
codebooks but the first are a step late (section 3.4.4). The depth transformer has weights of its own for each
codebook, and what it begins with is the text.

What the other side says comes step by step from outside: codes that are given beforehand, then silence, as
in transformers' generate. So frames can be drafted, and not only the codes within a frame. A live voice
cannot be heard: what is drafted looks ahead of what has been said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, MoshiForConditionalGeneration

from multispec.cache import RaggedCache
from multispec.errors import PromptError, UnsupportedError, UsageError
from multispec.guidance import Guidance
from multispec.history import History
from multispec.modalities.speech.codecs._checks import check_codes
from multispec.modalities.speech.codecs.mimi import MimiCodec
from multispec.modalities.speech.families._flat import words
from multispec.modalities.speech.families._slots import only_own_voice
from multispec.modalities.speech.families._two_level import (
    checked,
    explicit_mask,
    mask_of,
    read_part,
    read_pretrained,
)
from multispec.processing import Places, own_rules
from multispec.sampling import Sampling
from multispec.stream import Drawn, Forced, Prompt, Slot, StreamSpec
from multispec.targets.causal import attention_of, refuse_meta
from multispec.targets.masks import Attention, Pass
from multispec.targets.two_level import TwoLevelTarget

# What a prompt holds beside ids: codes of the other side, and of Moshi's own sound up to where it goes on.
USER, OWN = "user", "own"
# In the text, for steps without a word: the end of a pause, and the pause.
_NO_WORDS = (0, 3)
# What its authors sample with, for checkpoints that say nothing.
_TEXT, _SOUND = Sampling(temperature=0.7, top_k=25), Sampling(temperature=0.8, top_k=250)
_NOWHERE = Places(History([]), ((),))


def fits(config: Any) -> bool:
    """True for Moshi."""
    return getattr(config, "model_type", None) == "moshi"


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> Moshi:
    """The model of a folder or hub id; its codec lies in it.

    Raises:
        ModelLoadError: a part that is missing or cannot be read.
        UnsupportedError: a model that cannot be run over ragged rows.
    """
    model = read_pretrained(
        MoshiForConditionalGeneration,
        name_or_path,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    tokenizer = read_part(AutoTokenizer, name_or_path, "tokenizer.json", trust_remote_code=trust_remote_code)
    return Moshi.from_model(model, tokenizer)


def late(
    frames: Int[Tensor, "F K"], first: int, count: int, start: int, silence: Int[Tensor, " K"]
) -> Int[Tensor, "T K"]:
    """Steps ``first .. first + count - 1`` of a stream: a frame of ``start``, ``frames``, then ``silence``.

    All codebooks but the first are a step late.
    """
    edge = torch.full_like(silence, start)
    whole = torch.cat([edge[None], edge[None], frames.to(edge), silence.expand(first + count, -1)])
    return torch.cat([whole[first + 1 :][:count, :1], whole[first:][:count, 1:]], dim=1)


class MoshiTime:
    """The model over steps as a ``TimeModel``; ``silence [K]`` is what is heard where nothing is given."""

    def __init__(self, model: Any, silence: Int[Tensor, " K"]) -> None:
        self._body, self._head, self._books = model.decoder.model, model.decoder.lm_head, model.embed_tokens
        self._silence, self._start = silence, int(model.config.audio_vocab_size)
        self.layers = int(model.config.num_hidden_layers)
        self.attention = attention_of(model.decoder)
        self.like: Tensor = self._head.weight

    def prompt(self, prompt: Prompt) -> Tensor:
        """Text and both sounds, as far as they have come."""
        own = prompt.conditioning.get(OWN, self._silence[:0].view(0, len(self._silence)))
        count = len(prompt.ids)
        said = late(own, 0, count, self._start, self._silence)
        heard = self._heard(prompt, 0, count)
        return self._step(prompt.ids.to(self.like.device), torch.cat([said, heard], dim=1))

    def _heard(self, prompt: Prompt, first: int, count: int) -> Tensor:
        user = prompt.conditioning.get(USER, self._silence[:0].view(0, len(self._silence)))
        return late(user, first, count, self._start, self._silence)

    def _step(self, text: Tensor, codes: Tensor) -> Tensor:
        """The embeddings of a step's text, and of its codes of both sides, together."""
        found: Tensor = _embedded(self._body.embed_tokens, text)
        for level, book in enumerate(self._books):
            found = found + _embedded(book, codes[..., level])
        return found

    def frames(self, codes: Tensor, first: Sequence[int], prompts: Sequence[Prompt]) -> Tensor:
        """A step's text and codes, and what the other side says in it."""
        heard = [
            self._heard(one, len(one.ids) + begin, codes.shape[1])
            for one, begin in zip(prompts, first, strict=True)
        ]
        return self._step(codes[..., 0], torch.cat([codes[..., 1:], torch.stack(heard)], dim=-1))

    def __call__(self, inputs: Tensor, step: Pass, cache: RaggedCache) -> Tensor:
        """All layers."""
        out = self._body(
            inputs_embeds=inputs,
            attention_mask=mask_of(step),
            position_ids=step.positions(inputs.device),
            past_key_values=cache,
            use_cache=True,
        )
        states: Tensor = out.last_hidden_state
        return states

    def head(self, states: Tensor) -> Tensor:
        """The text."""
        found: Tensor = self._head(states)
        return found


def _embedded(table: Any, ids: Tensor) -> Tensor:
    # Drafts may hold symbols that a slot does not have; they are never accepted.
    found: Tensor = table(ids.clamp(max=table.num_embeddings - 1))
    return found


class MoshiDepth:
    """The depth decoder as a ``DepthModel``: entry 0 takes the text, entry e codebook e - 1."""

    lead = 0
    lockstep = True
    attention = Attention(kinds=("full_attention",))

    def __init__(self, model: Any) -> None:
        self._body = model.depth_decoder
        self._tables = [self._body.text_embed_tokens, *self._body.embed_tokens]
        self.layers = int(self._body.config.num_hidden_layers)
        self.like: Tensor = self._body.lm_heads.weight

    def __call__(self, states: Tensor, codes: Tensor, step: Pass, cache: RaggedCache) -> Tensor:
        """All layers; every entry takes the time model's state beside its symbol."""
        entries = step.positions(codes.device)[0]
        pairs = zip(entries.tolist(), codes.unbind(1), strict=True)
        hidden = torch.stack([_embedded(self._tables[entry], ids) for entry, ids in pairs], dim=1)
        hidden = hidden + self._body.input_projections(states[:, None], entries)
        mask = explicit_mask(step, codes.shape[1], hidden)
        for layer in self._body.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=entries[None],
                past_key_values=cache,
                codebook_idx=entries,
            )
        found: Tensor = hidden
        return found

    def head(self, found: Tensor, slot: int) -> Tensor:
        """A head for each codebook."""
        weight: Tensor = self._body.lm_heads.weight[slot - 1]
        logits: Tensor = F.linear(found, weight)
        return logits


@dataclass(frozen=True, kw_only=True)
class MoshiLayout:
    """Steps of a word and K codes, all but the first code a step late; ``begun`` are those of the first step.

    ::

        step          0  1  2  3          two codebooks, three frames a b c, P begun, x not heard
        text          u  v  w  x
        codebook 0    a  b  c  x
        codebook 1    P  a  b  c

    >>> layout = MoshiLayout(num_codebooks=2, codes_per_book=8, words=32, begun=(8,))
    >>> layout.codes([31, 1, 8, 30, 2, 3]).tolist()
    [[1, 3]]
    """

    num_codebooks: int
    codes_per_book: int
    words: int
    begun: tuple[int, ...]

    @property
    def _step(self) -> int:
        return self.num_codebooks + 1

    def grammar(self, generated: Sequence[int], /) -> Forced | None:
        """In the first step, what is left of the frame before."""
        place = len(generated)
        return Forced(self.begun[place - 2]) if 2 <= place < self._step else None

    @property
    def spec(self) -> StreamSpec:
        """K + 1 sequential slots; the symbol behind the codes stands for none."""
        codes = Slot(size=self.codes_per_book)
        size = max(self.words, self.codes_per_book + 1)
        return StreamSpec(
            # The widest slot counts what is forced, too.
            slots=(Slot(size=size), *(codes,) * self.num_codebooks),
            grammar=self.grammar,
            row_length=self._step,
            prompt_size=self.words + 1,
        )

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """(frame, codebook) of a position; None for text, and for what ends the frame before."""
        step, slot = divmod(position, self._step)
        frame = step - (slot > 1)
        return None if slot == 0 or frame < 0 else (frame, slot - 1)

    def codes(self, tokens: Sequence[int], /) -> Int[Tensor, "T K"]:
        """The codes of all frames that have come wholly.

        Raises:
            UsageError: a symbol that is no code where a code belongs.
        """
        steps = torch.tensor([*tokens], dtype=torch.long)[: len(tokens) // self._step * self._step]
        grid = rearrange(steps, "(t s) -> t s", s=self._step)[:, 1:]
        found = torch.cat([grid[:-1, :1], grid[1:, 1:]], dim=1)
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < self.codes_per_book:
            raise UsageError(
                f"Codes must lie in [0, {self.codes_per_book}): got {int(found.min())} .. {int(found.max())}."
                " Is this the layout that the tokens were made with?"
            )
        return found

    def tokens(self, codes: Int[Tensor, "T K"], /) -> Int[Tensor, " S"]:
        """The steps in which these frames stand, without words; ``codes`` undoes it.

        Raises:
            UsageError: codes outside the codebook, or another number of codebooks.
        """
        check_codes(codes, self.num_codebooks, self.codes_per_book)
        grid = torch.zeros((len(codes) + 1, self._step), dtype=torch.long)
        grid[:, 0] = _NO_WORDS[1]
        grid[0, 2:] = torch.tensor(self.begun, dtype=torch.long)
        grid[:-1, 1], grid[1:, 2:] = codes[:, 0], codes[:, 1:]
        return rearrange(grid if len(codes) else grid[:0], "t s -> (t s)")


@dataclass(frozen=True, kw_only=True)
class WordsAndSound:
    """Settings of their own for the words of Moshi and for its sound, as a pure function of the prefix.

    The ids that it is shown begin with ``prompt`` symbols of a prompt; then every step has ``step`` symbols,
    the first of which is a word.

    >>> rule = WordsAndSound(words=Sampling(top_k=1), sound=Sampling(), prompt=1, step=3)
    >>> rule(torch.zeros(1, 4, dtype=torch.long), torch.tensor([[1.0, 2.0]]))
    tensor([[-inf, 2.]])
    """

    words: Sampling
    sound: Sampling
    prompt: int
    step: int
    reads: ClassVar[Literal["scores", "prefix"]] = "prefix"

    def __call__(self, input_ids: Int[Tensor, "n S"], scores: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        """The scores as temperature and truncation of that slot leave them."""
        word = (input_ids.shape[-1] - self.prompt) % self.step == 0
        chosen = self.words if word else self.sound
        # Greedy settings have no warpers of their own.
        truncated = replace(chosen, temperature=1.0, top_k=1) if chosen.greedy else chosen
        for rule in own_rules(truncated, scores.shape[-1], (), None)[1]:
            scores = rule(scores, _NOWHERE)
        return scores


@dataclass(frozen=True)
class _Drawing:
    """``WordsAndSound`` behind a prompt of so many symbols; the settings asked for are those of the sound."""

    words: Sampling
    prompt: int
    step: int

    def __call__(self, sampling: Sampling, /) -> Drawn:
        if sampling.greedy:
            return Drawn(sampling)
        bare = replace(sampling, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0)
        rule = WordsAndSound(words=self.words, sound=sampling, prompt=self.prompt, step=self.step)
        return Drawn(bare, (rule,))


@dataclass(frozen=True, kw_only=True)
class Moshi:
    """A Moshi as a family of speech models.

    ``prompt`` lets it go on behind words of its own, which were said in silence; ``hearing`` is a dialogue.
    ``sampling`` is for its sound, ``words`` for its text; greedy decoding is for both. It never ends by
    itself: where nobody says how long, it speaks for ``seconds``.

    >>> family = Moshi.from_model(model, tokenizer)                            # doctest: +SKIP
    >>> prompt = family.hearing(family.codec.encode(question))                 # doctest: +SKIP
    >>> Generator(family.target, Speech(family)).generate(prompt).save("a.wav")  # doctest: +SKIP
    """

    target: TwoLevelTarget
    codec: MimiCodec
    tokenizer: Any
    config: Any
    silence: Int[Tensor, " K"]
    sampling: Sampling = _SOUND
    words: Sampling = _TEXT
    guidance: Guidance = field(default_factory=Guidance)
    text_limit: int = 600
    seconds: float = 10.0

    @staticmethod
    def from_model(model: Any, tokenizer: Any) -> Moshi:
        """Around a ``MoshiForConditionalGeneration`` and its tokenizer.

        Raises:
            ModelLoadError: a model without weights.
            UnsupportedError: a codec of fewer codes, or a model that cannot be run over ragged rows.
        """
        refuse_meta(model)
        model, config = model.eval(), model.config
        codec = MimiCodec.from_model(model.audio_encoder, num_codebooks=int(config.num_codebooks))
        if codec.cardinality < int(config.audio_vocab_size):
            raise UnsupportedError(
                f"This Moshi says codes below {config.audio_vocab_size}, and its codec has "
                f"{codec.cardinality}. Load the codec that it was trained with."
            )
        # What transformers' generate lets it hear where nobody speaks: a frame of zeros on its own.
        silence = codec.encode(torch.zeros(1, codec.hop))[0].to(model.decoder.lm_head.weight.device)
        words, sound = samplings_of(model.generation_config)
        return Moshi(
            target=_target(model, silence),
            codec=codec,
            tokenizer=tokenizer,
            config=config,
            silence=silence.cpu(),
            sampling=sound,
            words=words,
        )

    @property
    def voices(self) -> Sequence[str]:
        """It has one, without a name."""
        return ()

    def prompt(self, text: str, voice: str | None = None, /) -> Prompt:
        """Moshi goes on behind these words, which it has said in silence, and nobody else speaks.

        Raises:
            PromptError: a text that the tokenizer cannot read, or that leaves no room for sound.
            UnknownNameError: a voice; it has one without a name.
        """
        only_own_voice("Moshi", voice)
        return self._begun(words(self.tokenizer, text), {}, self.seconds * self._rate, text)

    @property
    def _rate(self) -> float:
        return self.codec.sampling_rate / self.codec.hop

    def hearing(self, user: Int[Tensor, "T K"] | Iterator[Tensor], text: str = "") -> Prompt:
        """Moshi's side of a dialogue, as long as the other side's ``user``; ``text`` as in ``prompt``.

        Raises:
            UnsupportedError: a voice that is not there yet, such as a stream of codes.
            UsageError: codes outside the codebook, or another number of codebooks.
            PromptError: a text that the tokenizer cannot read, or that leaves no room for sound.
        """
        if not isinstance(user, Tensor):
            raise UnsupportedError(
                "What the other side says has to be known beforehand: a frame that is drafted has heard the "
                f"frames before it, and got {type(user).__name__} instead of codes [T, K]. Record it, and "
                "pass codec.encode(waveform); for a live dialogue use the model's own streaming."
            )
        check_codes(user, self.codec.num_codebooks, self.codec.cardinality)
        ids = words(self.tokenizer, text) if text else []
        return self._begun(ids, {USER: user}, len(user) - len(ids), text)

    def _begun(self, ids: Sequence[int], heard: dict[str, Tensor], frames: float, text: str) -> Prompt:
        """A prompt of the start and these words, with as many frames of silence as Moshi's own sound."""
        own = {OWN: self.silence.expand(len(ids), -1)} if ids else {}
        start, limit = int(self.config.vocab_size), self.target.positions
        if limit is not None and len(ids) + 2 > limit:
            raise PromptError(
                f"The time model of Moshi holds {limit} steps: got {len(ids)} words before it speaks, which "
                "leaves no room for sound. Shorten the text."
            )
        prompt = Prompt(ids=torch.tensor([start, *ids]), conditioning=own | heard, text=text)
        step = self.codec.num_codebooks + 1
        drawing = _Drawing(self.words, len(prompt.ids), step)
        # A frame has come with the step behind it.
        length = (max(round(frames), 1) + 1) * step
        spec = replace(self.layout_of(prompt).spec, drawing=drawing, usual_length=length)
        return replace(prompt, spec=spec)

    def layout_of(self, prompt: Prompt, /) -> MoshiLayout:
        """Begins with what is left of the last frame of the prompt."""
        own = prompt.conditioning.get(OWN)
        return _layout(self.config, None if own is None or not len(own) else own[-1])

    def said(self, tokens: Sequence[int]) -> str:
        """The words of a stream.

        >>> family.said(result.tokens.flatten().tolist())                      # doctest: +SKIP
        """
        ids = [one for one in tokens[:: self.codec.num_codebooks + 1] if one not in _NO_WORDS]
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """Not there.

        Raises:
            UnsupportedError: always; there is nothing to guide away from.
        """
        raise UnsupportedError(
            "Moshi was never trained without what it hears, so there is nothing to guide away from. Leave "
            "guidance at 1."
        )


def samplings_of(settings: Any) -> tuple[Sampling, Sampling]:
    """What a checkpoint's generation settings say of words and of sound; else what its authors do."""
    depth = getattr(settings, "depth_decoder_config", None) or {}
    depth = depth if isinstance(depth, dict) else depth.to_dict()
    return _sampling(settings.to_dict(), _TEXT), _sampling(depth, _SOUND)


def _sampling(settings: dict[str, Any], published: Sampling) -> Sampling:
    if not settings.get("do_sample"):
        return published
    return Sampling(
        temperature=settings.get("temperature") or 1.0,
        top_k=settings.get("top_k") or 0,
        top_p=settings.get("top_p") or 1.0,
    )


def _layout(config: Any, last: Int[Tensor, " K"] | None = None) -> MoshiLayout:
    """The layout behind a last frame; None where nothing was said before."""
    books, codes = int(config.num_codebooks), int(config.audio_vocab_size)
    begun = (codes,) * (books - 1) if last is None else tuple(last[1:].tolist())
    return MoshiLayout(num_codebooks=books, codes_per_book=codes, words=int(config.vocab_size), begun=begun)


def _target(model: Any, silence: Int[Tensor, " K"]) -> TwoLevelTarget:
    config, time = model.config, MoshiTime(model, silence)
    limit = int(config.max_position_embeddings)
    target = TwoLevelTarget("Moshi", time, MoshiDepth(model), _layout(config).spec, limit)
    start, books = int(config.vocab_size), int(config.num_codebooks)
    user = torch.arange(3 * books).view(3, books) % int(config.audio_vocab_size)
    prompts = [
        Prompt(ids=torch.tensor([start, 1, 2]), conditioning={OWN: user[:2], USER: user}),
        Prompt(ids=torch.tensor([start])),
    ]
    return checked(target, prompts, lambda prompt, codes: _own_logits(model, time, prompt, codes))


def _own_logits(model: Any, time: MoshiTime, prompt: Prompt, codes: Sequence[int]) -> Tensor:
    """By plain passes of both models, without a cache."""
    step = int(model.config.num_codebooks) + 1
    device, whole = time.like.device, len(codes) // step * step
    inputs = time.prompt(prompt)[None]
    if whole:
        steps = torch.tensor(codes[:whole], device=device).view(1, -1, step)
        inputs = torch.cat([inputs, time.frames(steps, [0], [prompt])], 1)
    out = model.decoder(inputs_embeds=inputs, use_cache=False)
    if whole == len(codes):
        text: Tensor = out.logits[0, -1]
        return text
    ids = torch.tensor([codes[whole:]], device=device)
    state = out.last_hidden_state[:, -1:]
    found = model.depth_decoder(
        input_ids=ids, last_hidden_state=state, attention_mask=torch.ones_like(ids), use_cache=False
    )
    logits: Tensor = found.logits[0, -1]
    return logits
