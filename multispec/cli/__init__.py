"""The ``multispec`` command; one file per subcommand. Heavy imports wait until a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from multispec.cli import bench, build_datastore, check, demo, doctor, image, methods, speech, text

app = typer.Typer(
    name="multispec",
    help="Speculative generation in every modality: the same seed gives the same output, sooner.",
    epilog="Start with: multispec demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("text")(text.text)
app.command("image")(image.image)
app.command("speech")(speech.speech)
app.command("methods")(methods.methods)
app.command("check")(check.check)
app.command("bench")(bench.bench)
app.command("build-datastore")(build_datastore.build_datastore)
app.command("doctor")(doctor.doctor)


def _show_version(asked: bool) -> bool:
    if asked:
        from multispec import __version__

        typer.echo(f"multispec {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Read the options that belong to no command."""


def main() -> None:
    """Run the command line."""
    app()
