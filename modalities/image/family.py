"""What a family of image models must offer: how it is prompted, laid out, run and turned into pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from multispec.guidance import Guidance
from multispec.modalities.layout import Layout
from multispec.protocols import Target
from multispec.sampling import Sampling
from multispec.stream import Prompt


@runtime_checkable
class PictureCodec(Protocol):
    """Codes to pixels and back."""

    @property
    def cardinality(self) -> int:
        """Entries of the codebook."""
        ...

    @property
    def codebook(self) -> Float[Tensor, "V C"]:
        """What each code stands for: distances in it are what the relaxed rules go by."""
        ...

    @property
    def stride(self) -> int:
        """Pixels in one direction per code."""
        ...

    def encode(self, pixels: Float[Tensor, "3 height width"], /) -> Int[Tensor, "H W"]:
        """Codes of a picture with values in [0, 1].

        Raises:
            UsageError: a picture whose sides are no multiples of the stride.
            UnsupportedError: the checkpoint has no encoder.
        """
        ...

    def decode(self, codes: Int[Tensor, "H W"], /) -> Float[Tensor, "3 height width"]:
        """Pixels in [0, 1].

        Raises:
            UsageError: a code outside the codebook.
            UnsupportedError: the checkpoint has no decoder; says where to get one.
        """
        ...


@runtime_checkable
class Family(Protocol):
    """One loaded image model: everything the image modality needs to know about it."""

    @property
    def target(self) -> Target:
        """What runs it."""
        ...

    @property
    def codec(self) -> PictureCodec:
        """Its picture tokenizer."""
        ...

    @property
    def guidance(self) -> Guidance:
        """Its guidance when nobody says otherwise; its convention when somebody gives a scale."""
        ...

    @property
    def sampling(self) -> Sampling:
        """What its authors draw with: used when nobody says otherwise."""
        ...

    @property
    def symbols(self) -> Sequence[int]:
        """The symbol of each code of the codebook, in the order of the codes."""
        ...

    def layout(self, size: tuple[int, int] | None = None, /) -> Layout:
        """The stream of a picture of (height, width) pixels; its own size without.

        Raises:
            UsageError: a size that this model cannot draw; names those it can.
        """
        ...

    def prompt(self, caption: str, size: tuple[int, int] | None = None, /) -> Prompt:
        """The conditional prompt, with ``spec`` set to that of its layout.

        Raises:
            PromptError: a caption that its tokenizer cannot read.
        """
        ...

    def unconditional(self, prompt: Prompt, negative: str | None, /) -> Prompt:
        """The prompt of the other branch: ``negative``, or what the model was trained with for nothing."""
        ...

    def layout_of(self, prompt: Prompt, /) -> Layout:
        """The layout that a prompt was made for."""
        ...


@runtime_checkable
class Completes(Protocol):
    """A family that can also go on from the upper rows of a picture."""

    def completion(self, rows: Any, /) -> Prompt:
        """The prompt of a picture whose upper rows of codes are given, as lists or as a tensor ``[H, W]``.

        Its layout shows the whole picture.

        Raises:
            PromptError: rows that are no upper part of a picture.
        """
        ...
