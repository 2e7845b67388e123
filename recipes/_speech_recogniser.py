"""How speech is judged: a small recogniser of phonemes, trained on espeak-ng's own audio, and distances.

The recogniser never hears what a codec or a model made, so that it cannot learn their faults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct
from torch import Tensor, nn
from torch.nn import functional as F

from multispec.modalities.speech.pronunciation import collapsed
from recipes._speech_codec import features, filterbanks

CEPSTRA = 13


class Recogniser(nn.Module):
    """Phonemes from 50 frames a second, by connectionist temporal classification; class 0 is the blank.

    Graves et al. (2006), section 3; residual convolutions of growing reach.
    """

    def __init__(self, phonemes: int, width: int, blocks: int) -> None:
        super().__init__()
        self.inward = nn.Linear(160, width)
        dilations = [2 ** (i % 3) for i in range(blocks)]
        self.mixing = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2 * d, dilation=d) for d in dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in dilations)
        self.head = nn.Linear(width, phonemes + 1)

    def forward(self, heard: Tensor) -> Tensor:
        """Log-probabilities `[B, T, V]` of features `[B, T, 160]`."""
        hidden = self.inward(heard)
        for norm, conv in zip(self.norms, self.mixing, strict=True):
            hidden = hidden + F.gelu(conv(norm(hidden).transpose(1, 2))).transpose(1, 2)
        return cast(Tensor, self.head(hidden)).log_softmax(-1)


def ctc_loss(
    model: Recogniser, waves: Sequence[NDArray[np.float32]], phonemes: Sequence[Sequence[int]]
) -> Tensor:
    """Loss of sentences whose phonemes are numbers from 1."""
    heard = [features(torch.from_numpy(wave)[None])[0] for wave in waves]
    found = model(nn.utils.rnn.pad_sequence(heard, batch_first=True)).transpose(0, 1)
    wanted = torch.tensor([one for some in phonemes for one in some])
    before, after = (torch.tensor([len(one) for one in some]) for some in (heard, phonemes))
    return F.ctc_loss(found, wanted, before, after, zero_infinity=True)


@torch.inference_mode()
def recognised(model: Recogniser, wave: NDArray[np.float32]) -> list[int]:
    """The phonemes of a sound, as numbers from 1."""
    heard = features(torch.from_numpy(wave)[None])
    return collapsed(model(heard)[0].argmax(-1).tolist())


def edits(found: Sequence[int], wanted: Sequence[int]) -> int:
    """Insertions, deletions and replacements between two sequences (Levenshtein 1966).

    >>> edits([1, 2, 3, 4], [1, 3, 5, 4])
    2
    """
    row = list(range(len(wanted) + 1))
    for i, one in enumerate(found, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(wanted, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


def error_rate(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    """Edits for each phoneme that was to be said."""
    return sum(map(edits, found, wanted)) / sum(map(len, wanted))


def cepstra(wave: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mel cepstra `[S, 13]` every 10 ms, without the loudness: log magnitudes are sums of c[k] cos(k w)."""
    logs = filterbanks(torch.from_numpy(wave)[None])[0].numpy() / 2  # of magnitudes, not of powers
    turned: NDArray[np.float64] = np.asarray(dct(logs, axis=1), dtype=np.float64)
    bands: int = logs.shape[1]
    return turned[:, 1 : CEPSTRA + 1] / bands


def warped(distance: NDArray[np.float64]) -> tuple[float, int]:
    """The cheapest way through distances `[A, B]` and its number of steps (Sakoe and Chiba 1978)."""
    rows, columns = distance.shape
    cost = np.full((rows + 1, columns + 1), np.inf)
    steps = np.zeros((rows + 1, columns + 1), dtype=np.int64)
    cost[0, 0] = 0.0
    for diagonal in range(rows + columns - 1):  # cells of a diagonal do not see each other
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        ways = np.stack([cost[i, j], cost[i, j + 1], cost[i + 1, j]])
        lengths = np.stack([steps[i, j], steps[i, j + 1], steps[i + 1, j]])
        best = ways.argmin(0)
        cost[i + 1, j + 1] = ways.min(0) + distance[i, j]
        steps[i + 1, j + 1] = lengths[best, np.arange(len(i))] + 1
    return float(cost[-1, -1]), int(steps[-1, -1])


def cepstral_distortion(made: NDArray[np.float32], wave: NDArray[np.float32]) -> float:
    """Mel-cepstral distortion in dB (Kubichek 1993), frames matched by time warping."""
    ours, theirs = cepstra(made), cepstra(wave)
    distance = np.sqrt(2 * np.square(ours[:, None] - theirs[None]).sum(-1))
    total, steps = warped(distance)
    return 10 / float(np.log(10)) * total / steps
