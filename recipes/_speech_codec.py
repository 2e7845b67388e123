"""Codec of the speech demo: a small transformers `Xcodec2Model`, from sound to 50 codes a second and back.

Some of that class is left out by weights of zero. In the decoder: attention and the blocks with group norms,
which would let every code change every sample. Without them a sample depends on few codes around it, so that
a stream can be decoded piece by piece, to the very samples of the whole. In the encoder: the residual units
at the full rate, which cost three quarters of the time. Training skips what is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks
from torchaudio.functional import melscale_fbanks
from transformers import Wav2Vec2BertConfig, Xcodec2Config, Xcodec2Model

from recipes._speech_data import HOP, RATE

Model: TypeAlias = Any  # an Xcodec2Model, whose parts type checkers do not find

RESOLUTIONS = (256, 512, 1024, 2048)  # samples of a window of the loss
# The variance of what is rounded: its tanh is spread evenly over [-1, 1] where it is logistic with this one.
SPREAD = 0.82


def codec(hidden: int, layers: int, levels: Sequence[int], semantic: int, acoustic: int) -> Model:
    """A fresh codec; `hidden` is a multiple of 32, `semantic` and `acoustic` the widths of the encoders."""
    listening = Wav2Vec2BertConfig(
        hidden_size=semantic,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * semantic,
        conv_depthwise_kernel_size=15,
        position_embeddings_type=None,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        conformer_conv_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
    )
    config = Xcodec2Config(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        encoder_hidden_size=acoustic,
        downsampling_ratios=(HOP,),
        semantic_model_config=listening.to_dict(),
        quantization_dim=hidden + semantic,
        quantization_levels=tuple(levels),
        sampling_rate=RATE,
        activation_dropout=0.0,
    )
    model: Model = Xcodec2Model(config)
    reset(model)
    return model


def reset(model: Model) -> None:
    """Weights that have gradients; without them as it is initialised.

    What reaches beyond a few frames, or is never used, is set to zero and stays so.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            module.reset_parameters()
    decoder, first = model.acoustic_decoder, model.acoustic_encoder.block[0]
    for block in (*decoder.prior_net, *decoder.post_net, first.res_unit1, first.res_unit2, first.res_unit3):
        silence(block)
    for layer in decoder.layers:
        silence(layer.self_attn)
        layer.input_layernorm.requires_grad_(False)
        nn.init.zeros_(layer.mlp.fc2.weight)
    nn.init.normal_(model.quantizer.project_in.weight, std=0.1)
    nn.init.constant_(decoder.head.linear.bias[: decoder.head.n_fft // 2 + 1], -3.0)  # quiet at first
    model.semantic_encoder.masked_spec_embed.requires_grad_(False)


def silence(part: nn.Module) -> None:
    """A part that adds nothing to what it is added to, now and after training."""
    for weight in part.parameters():
        nn.init.zeros_(weight)
    part.requires_grad_(False)


@cache
def _banks() -> tuple[Tensor, Tensor]:
    mel, _ = get_mel_banks(80, 512, float(RATE), 20.0, RATE / 2, 100.0, -500.0, 1.0)
    window = torch.hann_window(400, periodic=False).pow(0.85)
    return F.pad(mel, (0, 1)), window


def filterbanks(waves: Tensor) -> Tensor:
    """Log-mel features `[B, S, 80]` every 10 ms of waves `[B, N]`, as Kaldi defines them."""
    mel, window = (one.to(waves.device) for one in _banks())
    frames = F.pad(waves * 32768, (HOP // 2, HOP // 2)).unfold(1, 400, 160)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
    power = torch.fft.rfft((frames - 0.97 * before) * window, 512).abs().square()
    found: Tensor = (power @ mel.T).clamp(min=torch.finfo(torch.float32).eps).log()
    return found


def features(waves: Tensor) -> Tensor:
    """What the semantic encoder takes, `[B, T, 160]`: features of mean 0 and variance 1, two to a frame."""
    found = filterbanks(waves)
    scaled: Tensor = (found - found.mean(1, keepdim=True)) / (found.var(1, keepdim=True) + 1e-7).sqrt()
    pairs: Tensor = scaled[:, : scaled.shape[1] // 2 * 2].unflatten(1, (-1, 2))
    return pairs.flatten(2)


def latents(model: Model, waves: Tensor) -> Tensor:
    """Encoded waves `[B, N]` of whole frames, `[B, T, C]`, with gradients."""
    listened = model.semantic_encoder(features(waves)).last_hidden_state.transpose(1, 2)
    both = torch.cat([model.semantic_adapter(listened), _heard(model.acoustic_encoder, waves)], 1)
    return cast(Tensor, model.fc_encoder(both.transpose(1, 2)))


def _heard(encoder: Any, waves: Tensor) -> Tensor:
    """The acoustic encoder `[B, C, T]` without its residual units."""
    first = encoder.block[0]
    return cast(
        Tensor, encoder.conv2(encoder.snake1(first.conv1(first.snake1(encoder.conv1(waves[:, None])))))
    )


def rendered(decoder: Any, quantized: Tensor) -> Tensor:
    """The decoder on `[B, T, C]`, without attention and group norms: waves `[B, N]`."""
    hidden = decoder.embed(decoder.fc(quantized).transpose(1, 2)).transpose(1, 2)
    for layer in decoder.layers:
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return cast(Tensor, decoder.head(decoder.norm(hidden))[:, 0])


def reconstruct(model: Model, waves: Tensor) -> tuple[Tensor, Tensor]:
    """Waves `[B, N]` through codes and back, and what was rounded to codes `[B, T, L]`, with gradients."""
    quantizer = model.quantizer.quantizer
    inner = quantizer.bound(model.quantizer.project_in(latents(model, waves)))
    rounded, _ = quantizer(inner)  # which bounds it again: the class was made so
    return rendered(model.acoustic_decoder, model.quantizer.project_out(rounded)), inner


def spread_loss(inner: Tensor) -> Tensor:
    """How far from 0 the mean of `[B, T, L]` is, and its covariance from equal and independent parts.

    Without it most frames end at the edge of the lattice, where nothing can be learned.
    """
    flat = inner.flatten(0, 1)
    centred = flat - flat.mean(0)
    covariance = centred.T @ centred / len(flat)
    wanted = SPREAD * torch.eye(len(covariance), device=inner.device)
    return flat.mean(0).square().mean() + (covariance - wanted).square().mean()


@cache
def _mel(size: int) -> Tensor:
    found: Tensor = melscale_fbanks(size // 2 + 1, 20.0, RATE / 2, 80 if size >= 1024 else 40, RATE)
    return found


def _magnitude(waves: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, device=waves.device)
    found = torch.stft(waves, size, size // 4, window=window, return_complex=True)
    return (found.real.square() + found.imag.square() + 1e-8).sqrt()


def sound_loss(made: Tensor, waves: Tensor) -> Tensor:
    """Distance of waves `[B, N]` in magnitudes and log-mel magnitudes, at several resolutions.

    Yamamoto et al. (2020), equations 3 to 6; no phase is compared.
    """
    total = made.new_zeros(())
    for size in RESOLUTIONS:
        ours, theirs = _magnitude(made, size), _magnitude(waves, size)
        off = (ours - theirs).square().sum().sqrt() / theirs.square().sum().sqrt().clamp(min=1e-3)
        logs = (ours.clamp(min=1e-3).log() - theirs.clamp(min=1e-3).log()).abs().mean()
        mel = _mel(size).to(made.device)
        heard = [(one.transpose(1, 2) @ mel).clamp(min=1e-3).log() for one in (ours, theirs)]
        total = total + off + logs + 2 * (heard[0] - heard[1]).abs().mean()
    return total / len(RESOLUTIONS)


def codec_loss(model: Model, waves: Tensor) -> Tensor:
    """Loss of a batch of waves `[B, N]`."""
    made, inner = reconstruct(model, waves)
    return sound_loss(made, waves) + spread_loss(inner)


@torch.inference_mode()
def encode(model: Model, wave: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Codes `[T]` of one sentence of whole frames."""
    waves = torch.from_numpy(wave)[None].to(next(model.parameters()).device)
    _, codes = model.quantizer(latents(model, waves))
    return cast(NDArray[np.uint16], codes[0, :, 0].cpu().numpy().astype(np.uint16))


@torch.inference_mode()
def decode(model: Model, codes: Sequence[int] | NDArray[np.uint16]) -> NDArray[np.float32]:
    """Samples `[N]` of codes `[T]`, by nothing but the model's own method."""
    ids = torch.as_tensor(np.asarray(codes, dtype=np.int64))[None, None]
    made = model.decode(ids.to(next(model.parameters()).device)).audio_values
    return cast(NDArray[np.float32], made[0, 0].float().clamp(-1, 1).cpu().numpy())


def usage(codes: NDArray[np.uint16], size: int) -> dict[str, float]:
    """How many codes are used, and how evenly."""
    share = np.bincount(codes, minlength=size) / len(codes)
    entropy = -float((share[share > 0] * np.log(share[share > 0])).sum())
    return {"codes": size, "codes_used": int((share > 0).sum()), "perplexity": float(np.exp(entropy))}
