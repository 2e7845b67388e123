"""Everything multispec raises or warns of, as one tree.

::

    MultispecError
    ├── UsageError (ValueError)        what the caller asked for cannot be right
    │   ├── UnknownNameError           no such method, model or option; names the nearest
    │   ├── SamplingError              a sampling setting outside its range
    │   ├── PromptError                an empty prompt, ids out of range, prompt too long
    │   ├── IncompatibleModelsError    draft and target do not fit together
    │   └── DraftError                 a draft that breaks its contract (tree, ids, q)
    ├── ModelLoadError (OSError)       weights missing, truncated, or on the meta device
    ├── UnsupportedError               this model or method cannot do that, and why
    ├── OutputError (OSError)          a file that cannot be written; what was made is kept
    └── GenerationError (RuntimeError) something broke half-way; ``partial`` keeps what was made
        ├── InvalidLogitsError         NaN or no symbol left; names the position and the rule
        └── OutOfMemoryError           names what was being allocated
    DrafterWarning (UserWarning)       a drafter failed; generation went on without it
    OutputWarning (UserWarning)        symbols that cannot become text or media; they are kept
    MethodWarning (UserWarning)        a method of another package that cannot be used; it is left out

Every message names the rule, what was got, what was expected, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multispec.stream import Generation


class MultispecError(Exception):
    """The root of the tree: ``except MultispecError`` catches all of it."""


class UsageError(MultispecError, ValueError):
    """A request that cannot be right; nothing was computed."""


class UnknownNameError(UsageError):
    """A name that is not known; the message offers the nearest one.

    >>> str(UnknownNameError("drafter", "promt_lookup", ["prompt_lookup", "draft_model"]))
    "Unknown drafter 'promt_lookup'. Did you mean 'prompt_lookup'? Known: draft_model,
    prompt_lookup."
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")


class SamplingError(UsageError):
    """A sampling setting outside its range."""


class PromptError(UsageError):
    """A prompt the model cannot take."""


class IncompatibleModelsError(UsageError):
    """A draft model whose symbols are not the target's symbols."""


class DraftError(UsageError):
    """A draft that breaks the contract of :class:`multispec.stream.Draft`."""


class ModelLoadError(MultispecError, OSError):
    """A model that cannot be read or cannot be run."""


class UnsupportedError(MultispecError):
    """Something this model or method cannot do; the message says why."""


class OutputError(MultispecError, OSError):
    """A file that cannot be written: a full disk, a place without permission. What was made is kept."""


class GenerationError(MultispecError, RuntimeError):
    """Generation broke half-way; ``partial`` holds one Generation per row with all that was made."""

    partial: list[Generation]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.partial = []


class InvalidLogitsError(GenerationError):
    """NaN, +inf, or no symbol with any probability."""


class OutOfMemoryError(GenerationError):
    """Memory ran out; the message names what was being allocated."""


class DrafterWarning(UserWarning):
    """A drafter failed and was set aside; the output is not affected."""


class OutputWarning(UserWarning):
    """Symbols that cannot be turned into media; they are kept, and ``output`` is None."""


class MethodWarning(UserWarning):
    """A method of another package that cannot be used: it is not in the catalog."""
