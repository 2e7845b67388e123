"""Qwen2.5-Omni: Xu et al. (2025), arXiv 2503.20215, section 2.4. A thinker reads, a talker says it in codes.

The talker hears the thinker all the time: to the embedding of its code number t is added what the thinker
made of the t-th symbol of the text (the last one for ever after). So a prompt carries both, ``inputs_embeds
[S, C]`` and ``reply [R, C]``, and what is added follows from the position alone: nothing has to be rolled
back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5OmniForConditionalGeneration

from multispec.cache import RaggedCache
from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError
from multispec.guidance import Guidance
from multispec.modalities.speech.codecs._checks import check_codes, sound
from multispec.modalities.speech.codecs._reach import UNBOUNDED
from multispec.modalities.speech.families._flat import words
from multispec.protocols import MAX_NODES, Capabilities, TargetSession
from multispec.sampling import Sampling
from multispec.stream import Allowed, Draft, Prompt, Slot, StreamSpec
from multispec.targets.causal import attention_of, context_length, refuse_meta, tolerance
from multispec.targets.loading import default_device
from multispec.targets.masks import Pass
from multispec.targets.ragged import RaggedSession, entries, entry_bytes
from multispec.tree import path_to

INPUTS, REPLY = "inputs_embeds", "reply"
RATE = 24000
# What its authors ask for wherever it is to speak, and what makes it say a text as it stands.
SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory "
    "and visual inputs, as well as generating text and speech."
)
_CHAT = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_ASK = "Read this aloud, word for word: {}"


def fits(config: Any) -> bool:
    """True for a Qwen2.5-Omni with a talker."""
    return getattr(config, "model_type", None) == "qwen2_5_omni" and bool(config.enable_audio_output)


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
) -> Qwen25Omni:
    """The model of a folder or hub id, in the first of its voices.

    Raises:
        ModelLoadError: a part that is missing or cannot be read.
        UnsupportedError: a talker that cannot be run over ragged rows.
    """
    place = torch.device(device) if device is not None else default_device()
    wanted = dtype if dtype is not None else (torch.float32 if place.type == "cpu" else "auto")
    try:
        model = Qwen2_5OmniForConditionalGeneration.from_pretrained(
            name_or_path, dtype=wanted, trust_remote_code=trust_remote_code
        )
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except MemoryError:
        raise
    except Exception as error:  # safetensors, pickles and tokenizers raise many kinds for broken files
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelLoadError(
            f"No Qwen2.5-Omni can be read from {str(name_or_path)!r}: {first} Expected a folder with "
            "config.json, model.safetensors, tokenizer.json and spk_dict.pt, or a hub id that is reachable."
        ) from error
    return Qwen25Omni.from_model(cast(Any, model).to(place), tokenizer)


@dataclass(frozen=True, kw_only=True)
class TalkerCodes:
    """A code a frame, until one of ``ends``; ``size`` codes in a vocabulary of ``vocab_size``.

    >>> TalkerCodes(size=5, ends=(7, 9), vocab_size=12).codes([4, 0, 9]).tolist()
    [[4], [0]]
    """

    size: int
    ends: tuple[int, ...]
    vocab_size: int
    num_codebooks: int = 1

    @cached_property
    def _allowed(self) -> Allowed:
        return Allowed((*range(self.size), *self.ends))

    def grammar(self, generated: Sequence[int], /) -> Allowed:
        """A code or an end."""
        return self._allowed

    @property
    def spec(self) -> StreamSpec:
        """One slot, until an end."""
        slot = Slot(size=self.vocab_size)
        return StreamSpec(slots=(slot,), end_ids=self.ends, grammar=self.grammar, row_length=1)

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """Every position is a frame."""
        return position, 0

    def codes(self, tokens: Sequence[int], /) -> Int[Tensor, "T K"]:
        """The codes before the end.

        Raises:
            UsageError: a symbol that is no code.
        """
        stop = next((n for n, one in enumerate(tokens) if one in self.ends), len(tokens))
        found = torch.tensor([*tokens[:stop]], dtype=torch.long).view(-1, 1)
        check_codes(found, 1, self.size)
        return found

    def tokens(self, codes: Int[Tensor, "T K"], /) -> Int[Tensor, " S"]:
        """The codes themselves."""
        check_codes(codes, 1, self.size)
        return rearrange(codes, "t one -> (t one)")


class TalkerForward:
    """A ``ragged.Forward`` of one batch: the talker, hearing what each prompt says at each position."""

    def __init__(self, talker: Any, prompts: Sequence[Prompt]) -> None:
        self._talker = talker
        self.layers = int(talker.config.num_hidden_layers)
        self.attention = attention_of(talker)
        self.like: Tensor = talker.get_input_embeddings().weight
        self._lengths = [len(prompt.ids) for prompt in prompts]
        self._inputs = [_heard(prompt, INPUTS).to(self.like) for prompt in prompts]
        self._replies = [_heard(prompt, REPLY).to(self.like) for prompt in prompts]

    def __call__(self, ids: Tensor, step: Pass, cache: RaggedCache, keep: Tensor | None) -> Tensor:
        """Run all layers."""
        embeds = self._prompts(step, ids.shape[1]) if step.prefill else self._following(ids, step)
        out = self._talker.model(
            inputs_embeds=self._talker.thinker_to_talker_proj(embeds),
            attention_mask=dict(step.masks),
            position_ids=step.positions(self.like.device),
            past_key_values=cache,
            use_cache=True,
        )
        hidden = out.last_hidden_state
        logits: Tensor = self._talker.codec_head(hidden if keep is None else hidden[:, keep])
        return logits.float()

    def _prompts(self, step: Pass, width: int) -> Tensor:
        return torch.stack(
            [F.pad(self._inputs[row], (0, 0, 0, width - self._lengths[row])) for row in step.rows]
        )

    def _following(self, ids: Tensor, step: Pass) -> Tensor:
        places = step.positions(self.like.device)
        heard = [
            reply[(at - self._lengths[row]).clamp(0, len(reply) - 1)]
            for at, row in zip(places.expand(len(step.rows), -1), step.rows, strict=True)
            for reply in (self._replies[row],)
        ]
        embedded: Tensor = self._talker.get_input_embeddings()(ids)
        return embedded + torch.stack(heard)


def _heard(prompt: Prompt, name: str) -> Tensor:
    found = prompt.conditioning.get(name)
    length = len(prompt.ids) if name == INPUTS else None
    if found is None or found.ndim != 2 or not len(found) or length not in (None, len(found)):
        got = "nothing" if found is None else str(tuple(found.shape))
        raise PromptError(
            f"The talker of Qwen2.5-Omni hears its thinker: got {got} as {name!r} for {len(prompt.ids)} ids. "
            f"Make the prompt with Qwen25Omni.prompt(), or give {INPUTS!r} [S, C] and {REPLY!r} [R, C]."
        )
    return found


class TalkerTarget:
    """The talker over ragged batches and trees, compared once with a plain pass of the model.

    Raises:
        ModelLoadError: the model has no weights.
        UnsupportedError: it runs otherwise here than by itself.
    """

    def __init__(self, talker: Any) -> None:
        refuse_meta(talker)
        self.talker = talker.eval()
        self.device: torch.device = next(talker.parameters()).device
        self.context_length = context_length(talker)
        ends = (int(talker.codec_pad_token), int(talker.codec_eos_token))
        self.spec = StreamSpec(slots=(Slot(size=int(talker.config.vocab_size)),), end_ids=ends)
        self.capabilities = Capabilities(way=TalkerForward.__name__)
        self._entry = 0
        self._check()

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """Open a session over these prompts."""
        return RaggedSession(self._bind(prompts), prompts, capacity, nodes, self._bind)

    def _bind(self, prompts: Sequence[Prompt]) -> TalkerForward:
        return TalkerForward(self.talker, prompts)

    def cache_bytes(self, prompt: Prompt, capacity: int, /) -> int:
        """Bytes for a row that may grow to so many symbols, found once by running a prompt."""
        if not self._entry:
            self._entry = entry_bytes(self._bind([prompt]), prompt)
        return self._entry * entries(capacity, MAX_NODES)

    @torch.inference_mode()
    def plain(self, prompt: Prompt, codes: Sequence[int]) -> Tensor:
        """Logits ``[V]`` behind a prompt and some codes, by a plain pass of the model without our cache."""
        like = self.talker.get_input_embeddings().weight
        reply, given = _heard(prompt, REPLY).to(like), _heard(prompt, INPUTS).to(like)
        ids = torch.tensor([*codes], dtype=torch.long, device=self.device)
        at = torch.arange(len(codes), device=self.device).clamp(max=len(reply) - 1)
        embeds = torch.cat([given, self.talker.get_input_embeddings()(ids) + reply[at]])[None]
        out = self.talker.model(inputs_embeds=self.talker.thinker_to_talker_proj(embeds), use_cache=False)
        logits: Tensor = self.talker.codec_head(out.last_hidden_state[0, -1]).float()
        return logits

    @torch.inference_mode()
    def _check(self) -> None:
        width, size = int(self.talker.config.embedding_size), self.spec.vocab_size
        draw = torch.Generator().manual_seed(0)
        prompts = [
            Prompt(
                ids=torch.zeros(length, dtype=torch.long),
                conditioning={
                    INPUTS: torch.randn(length, width, generator=draw),
                    REPLY: torch.randn(2, width, generator=draw),
                },
            )
            for length in (4, 3)
        ]
        session = self.begin(prompts, [16, 16], 4)
        first = session.prefill().logits
        drafts = [
            Draft(tokens=torch.tensor([1 % size, 2 % size, 3 % size]), parents=(-1, -1, 1)),
            Draft.chain([4]),
        ]
        found = session.score([0, 1], [5 % size, 6 % size], drafts).logits
        far = []
        for row, (prompt, root, draft) in enumerate(zip(prompts, (5 % size, 6 % size), drafts, strict=True)):
            far.append(_far(first[row][0], self.plain(prompt, [])))
            for node in range(-1, len(draft)):
                path = [draft.ids[step] for step in path_to(draft.parents, node)]
                far.append(_far(found[row][node + 1], self.plain(prompt, [root, *path])))
        limit = tolerance(self.talker.dtype)
        if not max(far) <= limit:  # NaN is no agreement
            raise UnsupportedError(
                "The talker runs here otherwise than by its plain forward pass: logits differ by "
                f"{max(far):.2g} of their deviation, the limit is {limit:.2g}. It needs the attention sdpa."
            )


def _far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / (expected.std() + 1e-12))


@dataclass(frozen=True)
class Token2Wav:
    """The way from codes to sound: a diffusion transformer and a vocoder, in the voice of one ``speaker``.

    Its noise comes from ``seed``, so codes sound the same every time. It has no encoder, and blocks of its
    attention are counted from the start, so that ``reach`` has no bound.
    """

    model: Any
    speaker: Mapping[str, Tensor]
    seed: int = 0
    num_codebooks: int = 1
    sampling_rate: int = RATE
    reach: tuple[int, int] = (UNBOUNDED, UNBOUNDED)

    @property
    def cardinality(self) -> int:
        """Codes that it can say."""
        return int(self.model.config.dit_config.num_embeds)

    @property
    def hop(self) -> int:
        """Samples of one code."""
        config = self.model.config
        return int(config.dit_config.repeats * torch.tensor(config.bigvgan_config.upsample_rates).prod())

    def codebook(self, level: int, /) -> Float[Tensor, "V C"]:
        """The embedding of each code."""
        weight: Tensor = self.model.code2wav_dit_model.text_embed.codec_embed.weight
        return weight.detach()[: self.cardinality]

    def encode(self, waveform: Float[Tensor, "C N"], /) -> Int[Tensor, "T K"]:
        """Nothing.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "Qwen2.5-Omni was published without the encoder of its codes, so sound cannot become codes. Only "
            "its talker makes them."
        )

    @torch.inference_mode()
    def decode(self, codes: Int[Tensor, "T K"], /) -> Float[Tensor, "C N"]:
        """Samples in [-1, 1].

        Raises:
            UsageError: codes that it cannot say, or more codebooks than one.
        """
        check_codes(codes, 1, self.cardinality)
        if not len(codes):
            return torch.zeros(1, 0)
        device = self.model.device
        cond, mel = (self.speaker[name].to(device).float() for name in ("cond", "ref_mel"))
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            samples = self.model(codes.T.to(device), conditioning=cond, reference_mel=mel)
        return sound(samples.reshape(1, -1), len(codes) * self.hop)


@dataclass(frozen=True, kw_only=True)
class Qwen25Omni:
    """A Qwen2.5-Omni that says a text, as a family of speech models, in the one voice of ``speaker``."""

    target: TalkerTarget
    model: Any
    codec: Token2Wav
    tokenizer: Any
    speaker: str
    guidance: Guidance = field(default_factory=Guidance)
    sampling: Sampling = Sampling(temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05)
    text_limit: int = 400

    @staticmethod
    def from_model(model: Any, tokenizer: Any, speaker: str | None = None) -> Qwen25Omni:
        """Around a ``Qwen2_5OmniForConditionalGeneration`` with speakers, and its tokenizer.

        Raises:
            ModelLoadError: a model without a talker, without speakers or without weights.
            UnknownNameError: an unknown speaker.
            UnsupportedError: a talker that cannot be run over ragged rows.
        """
        if not model.has_talker or not model.speaker_map:
            raise ModelLoadError(
                "This Qwen2.5-Omni cannot speak: it has no talker or no speakers. Load it with "
                "enable_audio_output and spk_dict.pt."
            )
        name = speaker or next(iter(model.speaker_map))
        if name not in model.speaker_map:
            raise UnknownNameError("speaker", name, model.speaker_map)
        return Qwen25Omni(
            target=TalkerTarget(model.talker),
            model=model.eval(),
            codec=Token2Wav(model.token2wav.float(), model.speaker_map[name]),
            tokenizer=tokenizer,
            speaker=name,
        )

    @property
    def voices(self) -> tuple[str, ...]:
        """Its one voice: the vocoder has another for each, so load it again for another."""
        return (self.speaker,)

    @cached_property
    def layout(self) -> TalkerCodes:
        """A code a frame, until the talker ends."""
        spec = self.target.spec
        size = min(self.codec.cardinality, *spec.end_ids, int(self.model.talker.codec_bos_token))
        return TalkerCodes(size=size, ends=spec.end_ids, vocab_size=spec.vocab_size)

    def layout_of(self, prompt: Prompt, /) -> TalkerCodes:
        """The same for every prompt."""
        return self.layout

    def prompt(self, text: str, voice: str | None = None, /) -> Prompt:
        """What the thinker makes of the text as its own answer.

        Raises:
            PromptError: a text that the tokenizer cannot read.
            UnknownNameError: another voice than its own.
        """
        if voice not in (None, self.speaker):
            raise UnknownNameError("voice", str(voice), self.voices)
        reply = words(self.tokenizer, text)
        asked: list[int] = self.tokenizer(_CHAT.format(SYSTEM, _ASK.format(text)))["input_ids"]
        begin = int(self.model.speaker_map[self.speaker]["bos_token"])
        heard = talker_prompt(self.model, torch.tensor(asked), torch.tensor(reply), begin)
        return replace(heard, spec=self.layout.spec, text=text)

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """The prompt of a negative text.

        Raises:
            UnsupportedError: none is given, and the model was never trained without a text.
        """
        if negative is None:
            raise UnsupportedError(
                "Qwen2.5-Omni was never trained without a text, so there is nothing to guide away from. "
                "Leave guidance at 1, or give a negative text."
            )
        return self.prompt(negative)


@torch.inference_mode()
def talker_prompt(model: Any, asked: Int[Tensor, " S"], reply: Int[Tensor, " R"], begin: int) -> Prompt:
    """The talker's prompt for an answer ``reply`` of the thinker to ``asked``; ``begin`` opens the text.

    Embeddings and last states of the thinker are added up, as ``generate`` does where it answers by itself.
    The talker's marks for the begin are in it always: transformers 5.23 leaves them out where no row is
    padded.
    """
    thinker, talker = model.thinker, model.talker
    ids = torch.cat([asked, reply])[None].to(model.device)
    out = thinker(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    made = (out.hidden_states[0] + out.hidden_states[-1])[0]

    def embedded(owner: Any, symbol: int) -> Tensor:
        found: Tensor = owner.get_input_embeddings()(torch.tensor([symbol], device=model.device))
        return found

    pad, start = int(talker.codec_pad_token), int(talker.codec_bos_token)
    opening = embedded(thinker, begin) + embedded(talker, pad)
    first = made[len(asked)][None] + embedded(talker, start)
    rest = [embedded(thinker, int(one)) for one in (talker.text_eos_token, talker.text_pad_token)]
    return Prompt(
        ids=torch.tensor([int(talker.codec_mask_token)] * len(asked) + [pad, start]),
        conditioning={
            INPUTS: torch.cat([made[: len(asked)], opening, first]),
            REPLY: torch.cat([made[len(asked) + 1 :], *rest]),
        },
    )
