"""Tiny random codecs of every kind, through the real classes; what comes out of them is noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    HiggsAudioV2TokenizerConfig,
    HiggsAudioV2TokenizerModel,
    HubertConfig,
    MimiConfig,
    MimiModel,
    NeuCodecConfig,
    NeuCodecModel,
    Wav2Vec2BertConfig,
    Xcodec2Config,
    Xcodec2Model,
    XcodecConfig,
    XcodecModel,
)

from multispec.modalities.speech.codecs._snac_model import SnacConfig, SnacModel
from multispec.modalities.speech.codecs.dac import DacCodec
from multispec.modalities.speech.codecs.encodec import EncodecCodec
from multispec.modalities.speech.codecs.higgs_audio import HiggsAudioCodec
from multispec.modalities.speech.codecs.mimi import MimiCodec
from multispec.modalities.speech.codecs.neucodec import NeuCodec
from multispec.modalities.speech.codecs.snac import SnacCodec
from multispec.modalities.speech.codecs.xcodec import XcodecCodec
from multispec.modalities.speech.codecs.xcodec2 import Xcodec2Codec

CODES = 16


def _encodec(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "sampling_rate": 1000,
        "target_bandwidths": (0.5, 1.0, 2.0),
        "num_filters": 4,
        "upsampling_ratios": (4, 2),
        "hidden_size": 16,
        "codebook_size": CODES,
    }
    return EncodecModel(EncodecConfig(**(settings | changes)))


def _dac(ratios: tuple[int, ...] = (2, 4)) -> Any:
    settings: dict[str, Any] = {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "n_codebooks": 3}
    sizes: dict[str, Any] = {"codebook_size": CODES, "codebook_dim": 4, "sampling_rate": 800}
    return DacModel(DacConfig(downsampling_ratios=ratios, **settings, **sizes))


def _mimi(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "sampling_rate": 1600,
        "hidden_size": 16,
        "num_filters": 4,
        "upsampling_ratios": [4, 2],
        "codebook_size": CODES,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": 4,
        "upsample_groups": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "sliding_window": 4,
        "layer_scale_initial_scale": 1.0,
    }
    return MimiModel(MimiConfig(**(settings | changes)))


def _semantic(kind: Any, config: Any, ratios: list[int], bandwidths: tuple[float, ...], **more: Any) -> Any:
    dac: dict[str, Any] = {"encoder_hidden_size": 2, "decoder_hidden_size": 32, "hidden_size": 16}
    dac |= {"upsampling_ratios": ratios}
    acoustic = DacConfig(downsampling_ratios=ratios, **dac)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    wave: dict[str, Any] = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16}
    groups: dict[str, Any] = {"num_conv_pos_embedding_groups": 2, "intermediate_size": 32}
    hubert = HubertConfig(**sizes, **wave, **groups)
    given = {"acoustic_model_config": acoustic.to_dict(), "semantic_model_config": hubert.to_dict()}
    return kind(config(target_bandwidths=bandwidths, codebook_size=CODES, **given, **more))


def _fsq(kind: Any, config: Any, **more: Any) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = Wav2Vec2BertConfig(**sizes, intermediate_size=64, conv_depthwise_kernel_size=3)
    decoder: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64}
    codes: dict[str, Any] = {"quantization_dim": 64, "quantization_levels": (4, 4)}
    semantic = {"semantic_model_config": bert.to_dict()}
    return kind(config(encoder_hidden_size=2, **sizes, **decoder, **codes, **semantic, **more))


def _snac() -> Any:
    small: dict[str, Any] = {"encoder_rates": (2, 3), "decoder_rates": (3, 2), "codebook_dim": 4}
    config = SnacConfig(sampling_rate=600, encoder_dim=4, decoder_dim=16, codebook_size=CODES, **small)
    return SnacModel(config)


BUILDERS: dict[str, Callable[[], Any]] = {
    "encodec": _encodec,
    "encodec 32k": lambda: _encodec(use_causal_conv=False, num_lstm_layers=1),
    "dac": _dac,
    "dac odd": lambda: _dac((2, 5)),
    "mimi": _mimi,
    "xcodec": lambda: _semantic(XcodecModel, XcodecConfig, [8, 5, 4, 2], (0.2, 0.4, 0.8)),
    "higgs": lambda: _semantic(
        HiggsAudioV2TokenizerModel, HiggsAudioV2TokenizerConfig, [8, 5, 4, 6], (0.1, 0.2, 0.4), codebook_dim=8
    ),
    "xcodec2": lambda: _fsq(Xcodec2Model, Xcodec2Config),
    "neucodec": lambda: _fsq(NeuCodecModel, NeuCodecConfig),
    "snac": _snac,
}
KINDS: dict[str, Any] = {
    "encodec": EncodecCodec,
    "encodec 32k": EncodecCodec,
    "dac": DacCodec,
    "dac odd": DacCodec,
    "mimi": MimiCodec,
    "xcodec": XcodecCodec,
    "higgs": HiggsAudioCodec,
    "xcodec2": Xcodec2Codec,
    "neucodec": NeuCodec,
    "snac": SnacCodec,
}


def build(name: str, seed: int = 0) -> Any:
    """A random model of that kind, its codebooks filled, its layers as torch initialises them."""
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BUILDERS[name]().eval()
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.ConvTranspose1d | nn.LSTM):
                module.reset_parameters()
                bias = getattr(module, "bias", None)
                if isinstance(bias, torch.Tensor):
                    bias.data.zero_()  # or all frames are nearest to the same code
        for key, buffer in [*model.named_buffers(), *model.named_parameters()]:
            if key.endswith((".embed", ".embed_sum")):
                buffer.normal_(std=0.02)
            if name in ("xcodec2", "neucodec") and key.endswith("quantizer.project_in.weight"):
                buffer.data.mul_(30)
    return model


@cache
def codec(name: str) -> Any:
    """One codec of each kind, shared by the tests."""
    return KINDS[name].from_model(build(name))


def codes(name: str, frames: int, seed: int = 0) -> torch.Tensor:
    """Random codes ``[frames, K]``."""
    draw = torch.Generator().manual_seed(seed)
    own = codec(name)
    return torch.randint(own.cardinality, (frames, own.num_codebooks), generator=draw)


def sound(channels: int, samples: int) -> torch.Tensor:
    """Something that changes all the time ``[channels, samples]``."""
    draw = torch.Generator().manual_seed(samples)
    return torch.rand(channels, samples, generator=draw) - 0.5
