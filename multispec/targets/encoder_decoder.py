"""Encoder-decoder models of transformers as targets: T5, BART, Whisper and their kin.

The encoder runs once per row. The decoder's self-attention cache is rolled back, its
cross-attention cache never is.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from multispec.errors import PromptError
from multispec.protocols import MAX_NODES, Capabilities, TargetSession
from multispec.stream import Prompt, Slot, StreamSpec
from multispec.targets.causal import context_length, end_ids, refuse_meta, vocabulary
from multispec.targets.rowwise import RowwiseSession, StateBytes, state_bytes


class _Cache:
    """A decoder cache with the encoder's output it belongs to; crops the self-attention only."""

    def __init__(self, model: Any, encoded: Any, mask: Tensor | None) -> None:
        own = DynamicCache(config=model.config.get_text_config(decoder=True))
        self.pair = EncoderDecoderCache(own, DynamicCache())
        self.encoded = encoded
        self.mask = mask

    @property
    def is_croppable(self) -> bool:
        return bool(self.pair.self_attention_cache.is_croppable)

    def activate_past_recording(self) -> None:
        self.pair.self_attention_cache.activate_past_recording()

    def crop(self, tokens_to_remove: int) -> None:
        self.pair.self_attention_cache.crop(tokens_to_remove)


class EncoderDecoderRunner:
    """One row: the encoder once, then the decoder in its own cache."""

    def __init__(self, model: Any) -> None:
        self.model = model
        encoder = inspect.signature(model.get_encoder().forward).parameters
        self._encoder_inputs = [name for name in encoder if name in ("input_ids", "input_features")]
        self._takes_mask = "attention_mask" in inspect.signature(model.forward).parameters

    def start(self, prompt: Prompt) -> tuple[Tensor, Any]:
        """Encode, then run the decoder's prompt.

        Raises:
            PromptError: the prompt has nothing for the encoder.
        """
        given = {name: value.to(self.model.device) for name, value in prompt.conditioning.items()}
        mask = given.get("attention_mask") if self._takes_mask else None
        if prompt.encoded is not None:
            cache = _Cache(self.model, BaseModelOutput(last_hidden_state=prompt.encoded), mask)
            return self.step(prompt.ids.tolist(), cache, 1), cache
        inputs = {name: given[name] for name in self._encoder_inputs if name in given}
        if not inputs:
            raise PromptError(
                f"{type(self.model).__name__} needs something to encode: got {sorted(given) or 'nothing'}, "
                f"expected one of {self._encoder_inputs}. Pass Prompt(ids=..., conditioning={{...}})."
            )
        extra = {} if mask is None else {"attention_mask": mask}
        encoded = self.model.get_encoder()(**inputs, **extra)
        cache = _Cache(self.model, encoded, mask)
        return self.step(prompt.ids.tolist(), cache, 1), cache

    def encoded_size(self, prompt: Prompt) -> int:
        """How many numbers the encoder is given, or has given."""
        given = [prompt.conditioning[name] for name in self._encoder_inputs if name in prompt.conditioning]
        if prompt.encoded is not None:
            given = [prompt.encoded]
        return max(sum(one.numel() for one in given), 1)

    def step(self, ids: Sequence[int], cache: Any, keep: int) -> Tensor:
        """Run decoder ids behind the cache."""
        extra = {} if cache.mask is None else {"attention_mask": cache.mask}
        out = self.model(
            encoder_outputs=cache.encoded,
            decoder_input_ids=torch.tensor([list(ids)], device=self.model.device),
            past_key_values=cache.pair,
            use_cache=True,
            **extra,
        )
        logits: Tensor = out.logits[0, -keep:]
        return logits


class EncoderDecoderTarget:
    """An encoder-decoder transformers model; prompts hold decoder ids and encoder inputs ``[1,
    ...]``.

    Raises:
        ModelLoadError: the model has no weights.
    """

    def __init__(self, model: Any) -> None:
        refuse_meta(model)
        self.model = model.eval()
        self.spec = StreamSpec(slots=(Slot(size=vocabulary(model)),), end_ids=end_ids(model))
        self.context_length = context_length(model)
        self.device: torch.device = next(model.parameters()).device
        self.way = "rowwise"
        why = "a decoder with cross-attention runs in its own cache, which takes no mask of ancestors"
        self.capabilities = Capabilities(supports_tree=False, way=self.way, why=why)
        self._runner = EncoderDecoderRunner(model)
        self._measured: tuple[StateBytes, int] | None = None

    def begin(self, prompts: Sequence[Prompt], capacity: Sequence[int], nodes: int) -> TargetSession:
        """Open a session over these prompts."""
        return RowwiseSession(self._runner, prompts)

    def cache_bytes(self, prompt: Prompt, capacity: int, /) -> int:
        """Bytes for a row that may grow to so many symbols; what is encoded is measured once and scaled."""
        size = self._runner.encoded_size(prompt)
        if self._measured is None:
            self._measured = state_bytes(self._runner, prompt), size
        state, known = self._measured
        return state.of(capacity + MAX_NODES) + state.fixed * (size - known) // known
