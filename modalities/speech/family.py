"""What a family of speech models must offer: how it is prompted, laid out, run and turned into sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from multispec.guidance import Guidance
from multispec.protocols import Target
from multispec.sampling import Sampling
from multispec.stream import Prompt, StreamSpec


@runtime_checkable
class FrameLayout(Protocol):
    """The stream of one utterance: which position is which codebook of which frame.

    Positions count generated symbols from 0. ``T`` frames of ``K`` codebooks; what is forced by the
    grammar (delays, pads, ends) has no place in the codes.
    """

    @property
    def num_codebooks(self) -> int:
        """Codebooks of a frame."""
        ...

    @property
    def spec(self) -> StreamSpec:
        """The stream of one utterance."""
        ...

    def coordinates(self, position: int, /) -> tuple[int, int] | None:
        """(frame, codebook) of a position; None for every other symbol."""
        ...

    def codes(self, tokens: Sequence[int], /) -> Int[Tensor, "T K"]:
        """The codes of all frames that are complete, in the codec's own numbers.

        Raises:
            UsageError: a symbol that is no code where a code belongs.
        """
        ...

    def tokens(self, codes: Int[Tensor, "T K"], /) -> Int[Tensor, " S"]:
        """The stream of some frames without its end; ``codes`` undoes it."""
        ...


@runtime_checkable
class SpeechCodec(Protocol):
    """Codes to sound and back."""

    @property
    def cardinality(self) -> int:
        """Entries of each codebook (of the largest one)."""
        ...

    @property
    def num_codebooks(self) -> int:
        """Codebooks of a frame."""
        ...

    @property
    def sampling_rate(self) -> int:
        """Samples a second of its sound."""
        ...

    @property
    def hop(self) -> int:
        """Samples of one frame."""
        ...

    @property
    def reach(self) -> tuple[int, int]:
        """Frames before and behind a frame that can change its samples by more than rounding.

        A stream decodes a chunk with so many frames around it, never from the start.
        """
        ...

    def codebook(self, level: int, /) -> Float[Tensor, "V C"]:
        """What each code of a codebook stands for: distances in it are what the relaxed rules go by."""
        ...

    def encode(self, waveform: Float[Tensor, "C N"], /) -> Int[Tensor, "T K"]:
        """Codes of a sound at ``sampling_rate``.

        Raises:
            UsageError: a sound that is empty.
            UnsupportedError: the checkpoint has no encoder; says where to get one.
        """
        ...

    def decode(self, codes: Int[Tensor, "T K"], /) -> Float[Tensor, "C N"]:
        """Samples in [-1, 1], ``hop`` for each frame.

        Raises:
            UsageError: codes outside the codebook, or another number of codebooks.
        """
        ...


@runtime_checkable
class SpeechFamily(Protocol):
    """One loaded speech model: everything the speech modality needs to know about it."""

    @property
    def target(self) -> Target:
        """What runs it."""
        ...

    @property
    def codec(self) -> SpeechCodec:
        """Its codec."""
        ...

    @property
    def guidance(self) -> Guidance:
        """Its guidance when nobody says otherwise; neutral for most."""
        ...

    @property
    def sampling(self) -> Sampling:
        """What its authors speak with: used when nobody says otherwise."""
        ...

    @property
    def voices(self) -> Sequence[str]:
        """The voices it knows by name, its own first; () where it has one without a name."""
        ...

    @property
    def text_limit(self) -> int:
        """The most characters of one utterance; longer texts are split into sentences before."""
        ...

    def prompt(self, text: str, voice: str | None = None, /) -> Prompt:
        """The prompt of one utterance, with ``spec`` set to that of its layout.

        Raises:
            PromptError: a text that the model cannot read.
            UnknownNameError: an unknown voice.
        """
        ...

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """The prompt of the other branch of guidance."""
        ...

    def layout_of(self, prompt: Prompt, /) -> FrameLayout:
        """The layout that a prompt was made for."""
        ...
