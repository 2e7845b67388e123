"""llama.cpp beside us, by llama-cpp-python: the same weights in float32, plain and with its prompt lookup.

Its time is that of its Python binding, one symbol at a time, as its users have it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from multispec.bench.cases import Case, Request, Run
from multispec.bench.gguf import write_gguf
from multispec.errors import UnsupportedError
from multispec.targets.loading import load_model

# What llama-cpp-python recommends on a CPU.
_LOOKED_UP = 2


@dataclass(frozen=True, eq=False)
class LlamaCpp:
    """One model of llama.cpp; prompts of a batch are answered one after the other."""

    name: str
    model: Any
    encode: Callable[[str], list[int]]

    def refuses(self, case: Case) -> str:
        """Its Python binding has no batches."""
        return "llama-cpp-python takes one prompt" if case.batch > 1 else ""

    def run(self, request: Request) -> Run:
        """Generate without an end."""
        rows = [self.encode(prompt) for prompt in request.prompts]
        start = time.perf_counter()
        tokens = tuple(self._one(row, request, n) for n, row in enumerate(rows))
        return Run(time.perf_counter() - start, tokens)

    def _one(self, row: list[int], request: Request, n: int) -> tuple[int, ...]:
        sampling = request.sampling[n]
        self.model.reset()  # no prompt is remembered from the turn before
        self.model.set_seed(sampling.seed)
        made = self.model.generate(
            row, temp=sampling.temperature, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0
        )
        return tuple(islice(made, request.new_tokens))


def llama_cpp_systems(folder: str, encode: Callable[[str], list[int]], room: int) -> list[LlamaCpp]:
    """llama.cpp with the model of a folder, for ``room`` positions.

    Raises:
        UnsupportedError: no llama-cpp-python, or a model that cannot be written as GGUF.
    """
    try:
        make = import_module("llama_cpp").Llama
        lookup = import_module("llama_cpp.llama_speculative").LlamaPromptLookupDecoding
    except (ImportError, OSError, RuntimeError) as error:
        raise UnsupportedError(
            f"llama.cpp needs the package llama-cpp-python ({error}): pip install llama-cpp-python gguf"
        ) from error
    with TemporaryDirectory() as temporary:
        path = write_gguf(load_model(folder, dtype=torch.float32), folder, Path(temporary) / "model.gguf")
        threads = torch.get_num_threads()
        words = {
            "model_path": str(path),
            "n_ctx": room,
            "n_threads": threads,
            "n_threads_batch": threads,
            "use_mmap": False,
            "verbose": False,
        }
        return [
            LlamaCpp("llama.cpp plain", make(**words), encode),
            LlamaCpp(
                "llama.cpp prompt lookup",
                make(**words, draft_model=lookup(num_pred_tokens=_LOOKED_UP)),
                encode,
            ),
        ]
