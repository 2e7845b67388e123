"""``multispec doctor``: versions, devices, what is missing and the command that mends it."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from multispec.cli import _speeds
from multispec.cli._console import Debug, Json, console, running, table, way_of

REQUIRED = "einops jaxtyping numpy rich safetensors tokenizers torch transformers typer".split()
EMBEDDED = ("text", "image", "speech")
# What each of them is for.
OPTIONAL = {
    "diffusers": "image",
    "pillow": "image",
    "soundfile": "speech",
    "torchaudio": "speech",
    "matplotlib": "plots",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: what was looked at, what was found, whether it is usable, and how to mend it."""

    name: str
    found: str
    ok: bool = True
    mend: str = ""


def doctor(
    measure: Annotated[
        bool, typer.Option("--measure", help="Time the ways of running the embedded text model, in turn.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show versions and devices, and what is missing with the command that mends it."""
    findings = list(examine())
    usable = all(one.ok for one in findings)
    with running(debug):
        measured = list(_speeds.speeds()) if measure and _present("text") else []
    if as_json:
        found: dict[str, Any] = {"ok": usable, "findings": [asdict(one) for one in findings]}
        found |= {"speeds": [asdict(one) for one in measured]} if measure else {}
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _show(findings, usable)
        if measured:
            _show_speeds(measured)
    if not usable:
        raise typer.Exit(1)


def _show(findings: list[Finding], usable: bool) -> None:
    screen = console()
    rows = [[one.name, one.found, _word(one), one.mend] for one in findings]
    screen.print(table(("what", "found", "", "to mend it"), rows))
    message = "Everything is usable." if usable else "Something is missing: see the last column."
    screen.print(message, style="green" if usable else "red")


def _show_speeds(measured: list[_speeds.Speed]) -> None:
    rows = [[one.name, one.against, *(f"{ratio:.2f}" for ratio in one.ratios)] for one in measured]
    heads = [f"{width} symbol{'s' * (width > 1)}" for width in _speeds.WIDTHS]
    title = "Seconds of a pass of the embedded text model against another way: medians of ratios in turn"
    console().print(table(("way", "against", *heads), rows, title))


def _word(one: Finding) -> str:
    return "[green]ok[/green]" if one.ok else "[red]PROBLEM[/red]"


def examine() -> Iterator[Finding]:
    """Look at everything; nothing is raised."""
    yield _python()
    yield _package("multispec", "pip install -e .")
    for name in REQUIRED:
        yield _package(name, f"pip install {name}")
    for name, extra in OPTIONAL.items():
        yield _optional(name, extra)
    looks: list[tuple[str, Callable[[], Finding]]] = [
        ("torchaudio import", _torchaudio),
        ("files of sounds", _soundfile),
        ("transformers models", _transformers),
        ("devices", _devices),
        ("processor", _processor),
        ("C compiler", _compiler),
        ("oneDNN weight packing", _packing),
        *((f"embedded {name} models", partial(_embedded, name)) for name in EMBEDDED),
    ]
    for name, look in looks:
        yield _safely(name, look)


def _safely(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except Exception as error:  # a doctor does not fall ill
        return Finding(name=name, found=f"{type(error).__name__}: {error}", ok=False, mend=_setup())


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def _setup() -> str:
    script = _root() / "scripts" / "setup"
    return "make setup" if script.is_file() else "pip install --force-reinstall multispec"


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    where = f"{platform.python_version()} at {sys.executable}"
    mend = "" if ok else "PYTHON=/path/to/python3.12 make setup"
    return Finding(name="python", found=where, ok=ok, mend=mend)


def _package(name: str, mend: str) -> Finding:
    try:
        return Finding(name=name, found=version(name))
    except PackageNotFoundError:
        return Finding(name=name, found="not installed", ok=False, mend=mend)


def _optional(name: str, extra: str) -> Finding:
    found = _package(name, "")
    if found.ok:
        return found
    hint = f"pip install 'multispec[{extra}]'"
    return Finding(name=name, found=f"not installed (only for {extra})", mend=hint)


def _torchaudio() -> Finding:
    name = "torchaudio import"
    if not _package("torchaudio", "").ok:
        return Finding(name=name, found="not installed, nothing to import")
    try:
        import torchaudio
    except (OSError, RuntimeError) as error:
        script = _root() / "scripts" / "mend_torchaudio.py"
        mend = f"{sys.executable} {script}" if script.is_file() else "pip uninstall torchaudio"
        reason = f"{type(error).__name__} beside this torch: {error}"
        return Finding(name=name, found=reason.splitlines()[0], ok=False, mend=mend)
    return Finding(name=name, found=f"works ({torchaudio.__version__})")


def _soundfile() -> Finding:
    name = "files of sounds"
    if not _package("soundfile", "").ok:
        return Finding(name=name, found="not installed, nothing to try")
    import torch

    from multispec.modalities.speech.audio import FORMATS, Audio

    with TemporaryDirectory() as folder:
        for ending in FORMATS:
            path = Path(folder) / f"sound{ending}"
            Audio(torch.zeros(1, 800), 8000).save(path)
            if Audio.read(path).duration != 0.1:
                mend = "pip install --force-reinstall soundfile"
                return Finding(name=name, found=f"{ending} comes back otherwise", ok=False, mend=mend)
    return Finding(name=name, found=f"{', '.join(FORMATS)} can be written and read")


def _transformers() -> Finding:
    from transformers import LlamaForCausalLM

    return Finding(name="transformers models", found=f"{LlamaForCausalLM.__name__} imports")


def _devices() -> Finding:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = f"cpu with {torch.get_num_threads()} threads"
    return Finding(name="devices", found=", ".join([cpu, *gpus]))


def _processor() -> Finding:
    from multispec.targets.fast import processor

    return Finding(name="processor", found=processor())


def _compiler() -> Finding:
    from multispec.errors import UnsupportedError
    from multispec.targets import native

    name = "C compiler"
    try:
        native.library()
    except UnsupportedError as error:
        hint = "apt install gcc, or set CC"
        return Finding(name=name, found=f"{error} Llamas run without passes in C", mend=hint)
    return Finding(name=name, found=f"{native.compiler() or 'not needed'}: Llamas run by passes in C")


def _packing() -> Finding:
    import torch
    import torch.nn.functional as F

    from multispec.targets.fast import can_pack, packed

    layer = torch.nn.Linear(16, 16)
    name = "oneDNN weight packing"
    if not can_pack(layer.weight):
        return Finding(name=name, found="not available here; weights stay as they are")
    x = torch.ones(2, 16)
    with torch.inference_mode():
        expected = F.linear(x, layer.weight, layer.bias)
        difference = (packed(layer.weight, layer.bias)(x) - expected).abs().max()
    found = f"works (differs by {float(difference):.1g})"
    return Finding(name=name, found=found, ok=float(difference) < 1e-4, mend="")


def _present(modality: str) -> bool:
    from multispec.loading import assets

    return (assets() / modality / "target" / "config.json").is_file()


def _embedded(modality: str) -> Finding:
    from multispec.loading import load

    name = f"embedded {modality} models"
    if not _present(modality):
        needed = modality == "text"
        mend = f"python recipes/train_{modality}.py"
        return Finding(name=name, found="not in this installation", ok=not needed, mend=mend)
    with running(debug=True):
        generator = load(modality)
    can = generator.target.capabilities
    why = f" (not otherwise: {can.why})" if can.why else ""
    return Finding(name=name, found=f"present, run as {way_of(generator)}: {can.weights}{why}")
