"""What the commands share: consoles, one-line errors, drafted tokens in colour. No heavy imports."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.color import ColorSystem
from rich.console import Console
from rich.markup import escape
from rich.style import Style
from rich.table import Table

from multispec.errors import DrafterWarning, MultispecError, UnknownNameError, UsageError

DRAFTED = Style(color="green", bold=True)
INTERRUPTED = 130  # the exit code after Ctrl-C
# Tables are not folded where no screen sets their width.
_FILE_WIDTH = 200

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Profile = Annotated[
    Path | None,
    typer.Option(
        "--profile", help="Write a trace of the generation here, for chrome://tracing or ui.perfetto.dev."
    ),
]
Fast = Annotated[
    str | None,
    typer.Option(
        "--fast",
        help="How weights are made ready for the processor: auto, off, bfloat16 or int8. The last two change "
        "what comes out.",
    ),
]
Model = Annotated[str, typer.Option("--model", help='A folder, a hub id, or "text" for the embedded model.')]
Draft = Annotated[str | None, typer.Option("--draft", help="The draft model: a folder or a hub id.")]


def console(*, stderr: bool = False) -> Console:
    """A console for the streams as they are now; plain where they are no terminal."""
    found = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not found.is_terminal:
        found.width = _FILE_WIDTH
    return found


def say(message: str, style: str = "") -> None:
    """One line for people, on stderr, so that stdout holds the output alone."""
    console(stderr=True).print(escape(message), style=style or None, soft_wrap=True)


@contextmanager
def running(debug: bool) -> Iterator[None]:
    """Run a command: errors of ours are one red line, exit code 2 for wrong usage, 1 for failures."""
    try:
        with warnings.catch_warnings():
            _hush()
            yield
    except MultispecError as error:
        if debug:
            raise
        say(f"Error: {error}", "red")
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None


def _hush() -> None:
    """No noise from libraries; a drafter that was set aside is said in one line."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", DrafterWarning)
    warnings.showwarning = _show_warning
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"Warning: {message}", "yellow")


@contextmanager
def profiled(trace: Path | None) -> Iterator[None]:
    """Trace what is run: every phase of every round by its name, and the kernels below.

    Raises:
        UsageError: a file that cannot be written, before anything is run.
    """
    if trace is None:
        yield
        return
    if trace.suffix not in (".json", ".gz") or not trace.absolute().parent.is_dir():
        raise UsageError(
            f"--profile writes a .json or .json.gz file into a folder that exists: got {str(trace)!r}. "
            "Name one, as trace.json."
        )
    # Its own progress is not for people.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import profile

    with profile() as watched:
        yield
    watched.export_chrome_trace(str(trace))
    say(f"Trace: {trace} (open it in chrome://tracing or ui.perfetto.dev)", "dim")


def load(model: str, draft: str | None, **where: Any) -> Any:
    """A generator for a command."""
    import multispec

    return multispec.load(model, draft=draft, **where)


def way_of(generator: Any) -> str:
    """How the model is run: the target's own word for it."""
    return str(generator.target.capabilities.way)


def dtype_of(name: str | None) -> Any:
    """The name itself, if it names a dtype.

    Raises:
        UnknownNameError: another name.
    """
    known = ("auto", "float32", "bfloat16", "float16", "float64")
    if name is not None and name not in known:
        raise UnknownNameError("dtype", name, known)
    return name


@contextmanager
def noticed() -> Iterator[list[int]]:
    """Note each Ctrl-C: the loop ends quietly on one, so that what was generated is kept."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


class Painter:
    """Writes text to stdout piece by piece; what was drafted is coloured where there is a terminal."""

    def __init__(self) -> None:
        found = console()
        self.colours = found.is_terminal and not found.no_color and found.color_system is not None

    def legend(self) -> None:
        """Say what the colour means, where there is one."""
        if self.colours:
            drafted = DRAFTED.render("drafted", color_system=ColorSystem.STANDARD)
            sys.stderr.write(f"[{drafted}, accepted by the target] [the target's own]\n")

    def write(self, text: str | None, drafted: bool) -> None:
        """Write a piece at once."""
        if not text:
            return
        if self.colours:
            # A model may emit escape sequences: they are shown, not obeyed.
            text = text.replace("\x1b", "\u241b")
            text = DRAFTED.render(text, color_system=ColorSystem.STANDARD) if drafted else text
        sys.stdout.write(text)
        sys.stdout.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> Table:
    """A small table; columns that hold numbers are set to the right."""
    made = Table(*(), title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for place, column in enumerate(columns):
        numbers = bool(rows) and all(_is_number(row[place]) for row in rows)
        made.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def _is_number(text: str) -> bool:
    return text.rstrip("x").replace(".", "", 1).replace("-", "", 1).isdigit()


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table as Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
