"""VQGAN decoders under the published names: the same pixels as their arithmetic written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from multispec.errors import ModelLoadError, UnsupportedError, UsageError
from multispec.modalities.image.family import PictureCodec
from multispec.modalities.image.vqgan import VQGAN
from tests.models import vqgans


def codes(height: int = 3, width: int = 2) -> Tensor:
    """A grid of codes."""
    return torch.randint(0, 16, (height, width), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("llamagen", [False, True])
def test_pixels_are_those_of_the_published_arithmetic(llamagen: bool) -> None:
    """Both layouts; LlamaGen's codes lie on the unit sphere, and pictures need not be square."""
    state = vqgans.state()
    codec = VQGAN.of(vqgans.llamagen_names(state) if llamagen else state)
    expected = vqgans.decoded(state, codes(), normalised=llamagen)
    found = codec.decode(codes())
    assert found.shape == (3, 6, 4) and isinstance(codec, PictureCodec)
    torch.testing.assert_close(found, ((expected + 1) / 2).clamp(0, 1), rtol=1e-4, atol=1e-5)
    assert float(found.std()) > 0.01
    assert codec.normalised == llamagen and (codec.stride, codec.cardinality) == (2, 16)
    length = codec.codebook.norm(dim=-1)
    assert torch.allclose(length, torch.ones(16)) == llamagen


def test_codes_are_those_of_transformers_encoder() -> None:
    """The encoder half of a real ``ChameleonVQVAE`` under its own names finds the same codes."""
    config = ChameleonVQVAEConfig(
        embed_dim=8,
        num_embeddings=64,
        latent_channels=16,
        base_channels=32,
        channel_multiplier=[1, 2, 2],
        num_res_blocks=2,
        resolution=16,
        attn_resolutions=[4],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vqmodel: Any = ChameleonVQVAE._from_config(config).eval()
        pixels = torch.rand(3, 16, 24)
        for weight in vqmodel.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    state = {name: value for name, value in vqmodel.state_dict().items() if "post_quant" not in name}
    codec = VQGAN.of(state)
    with torch.no_grad():
        expected = vqmodel.encode(pixels[None] * 2 - 1, return_dict=True).image_tokens.view(4, 6)
    assert torch.equal(codec.encode(pixels), expected) and len(expected.unique()) > 3
    assert codec.stride == 4 and not codec.decodes
    with pytest.raises(UnsupportedError, match="no decoder weights"):
        codec.decode(expected)
    with pytest.raises(UsageError, match="multiples of 4"):
        codec.encode(pixels[:, :15])


def test_a_decoder_alone() -> None:
    """What draws need not read; the codes of a picture are those it was drawn with, by LlamaGen's rule."""
    state = {name: value for name, value in vqgans.state().items() if not name.startswith(("enc", "quant_"))}
    codec = VQGAN.of(state)
    assert codec.decodes and codec.stride == 2
    with pytest.raises(UnsupportedError, match="no encoder weights"):
        codec.encode(torch.zeros(3, 4, 4))
    with pytest.raises(UsageError, match="must lie in"):
        codec.decode(codes() + 16)


def test_normalised_codes_are_found_on_the_sphere() -> None:
    """The length of an entry does not count where codes are directions."""
    state = vqgans.llamagen_names(vqgans.state())
    longer = dict(state)
    longer["quantize.embedding.weight"] = (
        state["quantize.embedding.weight"] * torch.linspace(0.5, 3, 16)[:, None]
    )
    pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(VQGAN.of(state).encode(pixels), VQGAN.of(longer).encode(pixels))


@pytest.mark.parametrize("form", ["vqgan.ckpt", "vqgan.safetensors"])
def test_every_weight_finds_its_place(tmp_path: Path, form: str) -> None:
    """Saved in the published form, with what training left: nothing is missing, nothing is too much."""
    state = vqgans.state() | {"loss.discriminator.main.0.weight": torch.zeros(2)}
    if form == "vqgan.ckpt":
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / form)
    else:
        save_file(state, tmp_path / form)
    codec = VQGAN.load(tmp_path / form, device="cpu", dtype=torch.float64)
    assert codec.network.state_dict().keys() and all(
        p.dtype == torch.float64 for p in codec.network.parameters()
    )
    assert len(codec.network.state_dict()) == len(state) - 1
    torch.testing.assert_close(codec.decode(codes()), VQGAN.of(state).decode(codes()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.conv_out.weight": None}, "decoder.conv_out|conv_out.weight"),
        ({"decoder.up.0.block.1.norm2.bias": None}, "1 weights are missing"),
        ({"decoder.up.0.block.1.conv1.weight": None}, "is missing"),
        ({"quantize.embedding.weight": None}, "quantize.embedding.weight"),
        ({"something.else": torch.zeros(1)}, "'something.else'"),
        ({"decoder.conv_in.weight": torch.zeros(64, 7, 3, 3)}, "no complete VQGAN"),
        ({"decoder.up.0.block.1.norm1.weight": torch.zeros(5)}, "no complete VQGAN"),
    ],
)
def test_a_checkpoint_that_is_wrong_is_refused(change: dict[str, Any], message: str) -> None:
    """Missing, unknown and misshapen weights are named."""
    state = {name: value for name, value in (vqgans.state() | change).items() if value is not None}
    with pytest.raises(ModelLoadError, match=message):
        VQGAN.of(state)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    """In both forms."""
    torch.save({"state_dict": vqgans.state()}, tmp_path / "vqgan.ckpt")
    save_file(vqgans.state(), tmp_path / "vqgan.safetensors")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ModelLoadError, match="cut short"):
            VQGAN.load(path, device="cpu")
