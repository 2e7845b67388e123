"""Makes `import torchaudio` work beside any torch, and with it every transformers model.

The torchaudio wheel on the package index links CUDA. Beside a CPU-only torch its import raises
OSError, and then so does each transformers model, since transformers imports torchaudio wherever it
is installed. Without its own libraries torchaudio runs in pure Python, so the mend is to set those
aside. It mends the environment of the interpreter that runs it, and is safe to repeat:

    python scripts/mend_torchaudio.py
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SET_ASIDE = ".set-aside"  # torchaudio looks for lib/*.so only
MENDABLE = ("OSError", "RuntimeError")  # a missing CUDA library; another CUDA than torch's


def failed_import(statement: str) -> str | None:
    """The last line of the error that `statement` raises in a fresh interpreter, or None."""
    run = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True)
    lines = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
    return lines[-1] if run.returncode else None


def set_aside_libraries(package: Path) -> list[Path]:
    """Renames each `lib/*.so` of an installed torchaudio, so that its import passes them by."""
    libraries = sorted(package.glob("lib/*.so"))
    for library in libraries:
        library.rename(library.with_name(library.name + SET_ASIDE))
    return libraries


def mend() -> str:
    """Mends torchaudio if it needs it, and says what was done."""
    spec = find_spec("torchaudio")
    if spec is None or spec.origin is None:
        return "torchaudio: not installed, nothing to mend"
    error = failed_import("import torchaudio")
    if error is None:
        return "torchaudio: imports, nothing to mend"
    if not error.startswith(MENDABLE):
        return f"torchaudio: not a fault that can be mended here: {error}"
    libraries = set_aside_libraries(Path(spec.origin).parent)
    names = ", ".join(library.name for library in libraries)
    return f"torchaudio: does not fit this torch, now pure Python (set aside in its lib: {names})"


def main() -> int:
    """Mends, then proves by import that torchaudio and a transformers model work."""
    print(mend())
    statements = ["from transformers import LlamaForCausalLM"]
    if find_spec("torchaudio") is not None:
        statements.insert(0, "import torchaudio")
    for statement in statements:
        error = failed_import(statement)
        if error is not None:
            print(f"`{statement}` fails: {error}", file=sys.stderr)
            return 1
    print("transformers: a model imports")
    return 0


if __name__ == "__main__":
    sys.exit(main())
