"""Image tokenizer of the demo: a diffusers `VQModel`, from pixels to codes and back.

It is trained in three phases: as an autoencoder whose latents are noisy, so that they spread out;
with a codebook found by k-means among those latents; and with the codes merged to the number that
is wanted. Code 0 stands for white ground and for nothing else, or the ground takes many codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from diffusers import VQModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recipes._image_data import SIDE, Pixels

Model: TypeAlias = Any  # a VQModel, whose attributes type checkers do not find

GRID = 16
WHITE = 2.0  # every coordinate of the latent of white ground; other latents have about unit variance
NOISE = 0.5  # of the latents in the first phase: about the information that a code can carry


def vq_model(channels: Sequence[int], codes: int, code_dim: int) -> Model:
    """A fresh tokenizer for pictures of 64 x 64 and, with three channels, a grid of 16 x 16."""
    levels = len(channels)
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=code_dim,
        vq_embed_dim=code_dim,
        num_vq_embeddings=codes,
        norm_num_groups=8,
        sample_size=SIDE,
    )


def as_input(pixels: Pixels | Tensor) -> Tensor:
    """Pictures `[N, H, W, 3]` as the model takes them: `[N, 3, H, W]` between -1 and 1."""
    return torch.as_tensor(pixels).movedim(-1, 1).float() / 127.5 - 1


def as_pixels(images: Tensor) -> Pixels:
    """What the model returns as pictures `[N, H, W, 3]`."""
    scaled = (images.clamp(-1, 1) + 1) * 127.5
    return cast(Pixels, scaled.round().byte().movedim(1, -1).cpu().numpy())


def codebook(model: Model) -> nn.Parameter:
    """The vectors `[codes, code_dim]` of the codes."""
    return cast(nn.Parameter, model.quantize.embedding.weight)


def white_cells(images: Tensor) -> Tensor:
    """Which cells `[N, 16, 16]` of pictures `[N, 3, H, W]` hold nothing but white."""
    return F.max_pool2d(-images.amin(1), SIDE // GRID) < -0.98


def latents(model: Model, images: Tensor) -> Tensor:
    """Latents `[N, 16, 16, code_dim]` of pictures."""
    return cast(Tensor, model.encode(images).latents).movedim(1, -1)


def assign(z: Tensor, codes: Tensor, white: Tensor) -> Tensor:
    """The nearest code of every latent `[N, 16, 16, D]`; 0 where it is white, and only there."""
    distance = (codes[1:].square().sum(-1) - 2 * z @ codes[1:].T).argmin(-1) + 1
    return distance.masked_fill(white, 0)


def render(model: Model, quantized: Tensor) -> Tensor:
    """Pictures `[N, 3, H, W]` of quantized latents `[N, 16, 16, code_dim]`."""
    return cast(Tensor, model.decoder(model.post_quant_conv(quantized.movedim(-1, 1))))


def decode_codes(model: Model, codes: Tensor) -> Tensor:
    """Pictures of codes `[N, 16, 16]`, by nothing but the model's own methods."""
    shape = (*codes.shape, codebook(model).shape[1])
    quantized = model.quantize.get_codebook_entry(codes.flatten(), shape)
    return cast(Tensor, model.decode(quantized, force_not_quantize=True).sample)


def picture_loss(made: Tensor, images: Tensor) -> Tensor:
    """Distance in brightness, colour and edges, of pictures between -1 and 1."""
    error = made - images
    chroma = error - error.mean(1, keepdim=True)
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 2 * chroma.abs().mean() + edges


def noisy_loss(model: Model, images: Tensor) -> Tensor:
    """Loss of the first phase: no codes, noisy latents of about unit variance."""
    white = white_cells(images)
    z = latents(model, images)
    pulled = (z[white] - WHITE).square().sum() / z.numel()
    inside = z[~white]
    spread = (inside.square().mean() - 1).square() + inside.mean(0).square().mean()
    noisy = torch.where(white[..., None], WHITE, z + NOISE * torch.randn_like(z))
    return picture_loss(render(model, noisy), images) + 0.05 * pulled + 0.05 * spread


def quantized_loss(model: Model, images: Tensor) -> Tensor:
    """Loss of the later phases: van den Oord et al. (2017), equation 3, with white cells set."""
    white, book = white_cells(images), codebook(model)
    z = latents(model, images)
    codes = assign(z.detach(), book.detach(), white)
    chosen = F.embedding(codes, book)
    off = (z - chosen.detach()).square()
    moved = (chosen - z.detach())[~white].square().sum() / z.numel()
    through = torch.where(white[..., None], chosen.detach(), z + (chosen - z).detach())
    # White cells are pulled harder, so that the quantizer without our rule calls them white too.
    commitment = off[~white].sum() + 3 * off[white].sum()
    return picture_loss(render(model, through), images) + 0.1 * commitment / z.numel() + 0.4 * moved


def sample_views(pixels: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Pictures `[N, H, W, 3]` moved, mirrored, and a third of them with mixed-up colour channels."""
    moved = []
    for picture in pixels:
        down, right, mirror, mix = torch.randint(0, 9, (4,), generator=rng).tolist()
        white = F.pad(picture.movedim(-1, 0), (4, 4, 4, 4), value=255)
        view = white[:, down : down + SIDE, right : right + SIDE]
        view = view.flip(-1) if mirror % 2 else view
        moved.append(view[torch.randperm(3, generator=rng)] if mix < 3 else view)
    return torch.stack(moved).movedim(1, -1)


@torch.inference_mode()
def encode(model: Model, pictures: Tensor, pool: ThreadPoolExecutor) -> Tensor:
    """Codes `[N, 16, 16]` of pictures `[N, H, W, 3]`, on the CPU."""

    @torch.inference_mode()
    def some(part: Tensor) -> Tensor:
        images = as_input(part).to(model.device)
        return assign(latents(model, images), codebook(model), white_cells(images)).cpu()

    return torch.cat(list(pool.map(some, torch.split(pictures, 32))))


@torch.inference_mode()
def decode(model: Model, codes: Tensor, pool: ThreadPoolExecutor) -> Pixels:
    """Pictures `[N, H, W, 3]` of codes `[N, 16, 16]`."""

    @torch.inference_mode()
    def some(part: Tensor) -> Pixels:
        return as_pixels(decode_codes(model, part.to(model.device)))

    return np.concatenate(list(pool.map(some, torch.split(codes, 32))))


@torch.inference_mode()
def latent_sample(model: Model, pictures: Tensor, pool: ThreadPoolExecutor) -> Tensor:
    """Latents `[M, code_dim]` of the cells of pictures that are not white."""

    @torch.inference_mode()
    def some(part: Tensor) -> Tensor:
        images = as_input(part).to(model.device)
        return latents(model, images)[~white_cells(images)].cpu()

    return torch.cat(list(pool.map(some, torch.split(pictures, 32))))


def k_means(points: Tensor, centres: int, rounds: int, seed: int) -> Tensor:
    """Centres `[centres, D]` of points `[M, D]`; an empty one moves to the point that is worst off."""
    rng = torch.Generator().manual_seed(seed)
    found = points[torch.randperm(len(points), generator=rng)[:centres]].clone()
    if len(found) < centres:
        found = torch.cat([found, torch.randn(centres - len(found), points.shape[1], generator=rng)])
    for _ in range(rounds):
        distance, nearest = torch.cdist(points, found).min(1)
        counts = torch.bincount(nearest, minlength=centres)
        sums = torch.zeros_like(found).index_add_(0, nearest, points)
        found = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], found)
        empty = (counts == 0).nonzero().flatten()
        found[empty[: len(points)]] = points[distance.topk(min(len(empty), len(points))).indices]
    return found


def merge(vectors: Tensor, counts: Tensor, wanted: int) -> Tensor:
    """Merge the closest codes until `wanted` are left, as Ward (1963) does.

    The weight of a code is the root of its count: by counts alone the rare colours go first.
    """
    points = vectors.double().numpy().copy()
    weights = np.sqrt(counts.double().numpy() + 1e-3)
    alive = np.ones(len(points), dtype=bool)
    cost = _costs(points, weights)
    while alive.sum() > wanted:
        i, j = np.unravel_index(int(cost.argmin()), cost.shape)
        points[i] = (weights[i] * points[i] + weights[j] * points[j]) / (weights[i] + weights[j])
        weights[i] += weights[j]
        alive[j] = False
        share = weights[i] * weights / (weights[i] + weights)
        cost[i] = cost[:, i] = np.where(alive, share * ((points - points[i]) ** 2).sum(-1), np.inf)
        cost[j] = cost[:, j] = np.inf
        cost[i, i] = np.inf
    return torch.from_numpy(points[alive]).float()


def _costs(points: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = ((points[:, None] - points[None]) ** 2).sum(-1)
    costs: NDArray[np.float64] = squares * weights[:, None] * weights / (weights[:, None] + weights)
    np.fill_diagonal(costs, np.inf)
    return costs


def with_codes(model: Model, vectors: Tensor) -> Model:
    """The same tokenizer with the white code and these vectors as its codebook."""
    config = dict(model.config)
    fresh = vq_model(config["block_out_channels"], len(vectors) + 1, vectors.shape[1])
    weights = {name: value for name, value in model.state_dict().items() if "embedding" not in name}
    white = torch.full((1, vectors.shape[1]), WHITE)
    weights["quantize.embedding.weight"] = torch.cat([white, vectors])
    fresh.load_state_dict(weights)
    return fresh.to(model.device)


def psnr(made: Pixels, pictures: Pixels) -> float:
    """Mean peak signal-to-noise ratio in dB."""
    error = ((made.astype(np.float64) - pictures) ** 2).reshape(len(made), -1).mean(-1)
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-9))).mean())


@torch.inference_mode()
def plain_agreement(model: Model, codes: Tensor, pictures: Pixels) -> float:
    """Share of codes that the model's own quantizer gives as well, without the rule for white cells."""
    some = as_input(pictures[:64]).to(model.device)
    own = model.quantize(model.encode(some).latents)[2][2].view(-1, GRID, GRID).cpu()
    return float((own == codes[:64]).float().mean())


def usage(codes: Tensor, size: int) -> dict[str, float]:
    """How many codes occur in codes `[N, 16, 16]`, their perplexity, and that without white."""
    counts = torch.bincount(codes.flatten(), minlength=size).double()

    def perplexity(some: Tensor) -> float:
        p = some / some.sum().clamp(min=1)
        return float(torch.exp(-(p * p.clamp(min=1e-12).log()).sum()))

    return {
        "codes": size,
        "codes_used": int((counts > 0).sum()),
        "perplexity": perplexity(counts),
        "perplexity_without_white": perplexity(counts[1:]),
        "white_share": float(counts[0] / counts.sum()),
    }
