"""``multispec speech``: say a text, and show what drafting did."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from multispec.cli._console import (
    INTERRUPTED,
    Debug,
    Draft,
    Fast,
    Json,
    Profile,
    console,
    dtype_of,
    load,
    noticed,
    profiled,
    running,
    say,
    table,
)
from multispec.cli._timing import verdict
from multispec.errors import GenerationError, OutputError, UnsupportedError

COLUMNS = ("", "seconds", "codes/s", "speed ratio", "real-time factor", "target calls", "step compression")
# More frames than any utterance has: it is decoded once, when it is whole.
_WHOLE = 2**40


def speech(
    text: Annotated[str, typer.Argument(help="What to say; - reads standard input.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A .wav, .flac or .ogg file; without it, a name made of the text."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help='A folder, a hub id, or "speech" for the embedded model.')
    ] = "speech",
    draft: Draft = None,
    drafter: Annotated[
        str, typer.Option(help="auto, none, or a drafter that `multispec methods` lists.")
    ] = "auto",
    verifier: Annotated[str, typer.Option(help="A verifier of `multispec methods`.")] = "coupled",
    policy: Annotated[str, typer.Option(help="auto, or a policy of `multispec methods`.")] = "auto",
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy; without it, the model's own, as for the next two.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k best; 0 is off.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep this much mass; 1 is off.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How much the text counts; 1 is off.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same sound.")] = 0,
    voice: Annotated[str | None, typer.Option(help="A voice of the model; without it, its own.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Decode chunk by chunk, and say when each was there.")
    ] = False,
    play: Annotated[bool, typer.Option("--play", help="Play it while it comes.")] = False,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Frames of a chunk, with --stream or --play.")
    ] = None,
    spectrogram: Annotated[
        Path | None, typer.Option(help="Write a picture of the sound with the frames that drafts gave.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Speak plainly too, and compare the samples.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Where to run, such as cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16, float64 or auto.")] = None,
    fast: Fast = None,
    profile: Profile = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say TEXT; the same seed gives the same sound with any drafter."""
    with running(debug):
        words = sys.stdin.read() if text == "-" else text
        files = _Files.of(words, output, spectrogram, as_json or play)
        _check_loudspeaker(play)
        where = {"device": device, "dtype": dtype_of(dtype), "fast": fast}
        generator = load(model, draft, modality="speech", **where)
        chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        given = {name: value for name, value in chosen.items() if value is not None}
        settings = {
            "drafter": drafter,
            "verifier": verifier,
            "policy": policy,
            "sampling": replace(generator.modality.sampling, seed=seed, **given),
            "guidance": guidance,
        }
        live = stream or play
        generator.modality = replace(generator.modality, chunk=chunk if live else _WHOLE)
        speaking = _Speaking(generator, words, voice, settings)
        with profiled(profile):
            speaking.run(play=play, tell=stream and not as_json)
        written = files.write(speaking.said)
        compared = _compared(speaking) if compare and speaking.said.complete else None
        _tell(speaking, written, compared, as_json, live)
        speaking.fail(files)


def _check_loudspeaker(play: bool) -> None:
    if play:
        from multispec.modalities.speech.audio import library

        library("sounddevice", "--play", "sounddevice")


@dataclass(kw_only=True)
class _Files:
    """Where everything goes; endings are checked before anything is computed."""

    sound: Path | None
    picture: Path | None
    failure: OutputError | None = None

    @staticmethod
    def of(text: str, sound: Path | None, picture: Path | None, silent: bool) -> _Files:
        """The files asked for, or a name made of the text.

        Raises:
            UsageError: an ending that stands for no format.
            UnsupportedError: a library that is missing.
        """
        from multispec.modalities.speech.audio import check_ending, library
        from multispec.modalities.speech.seeing import check_picture

        if sound is None and not silent:
            name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")
            sound = Path(f"{name or 'speech'}.wav")
        if sound is not None:
            check_ending(sound)
            library("soundfile", "Files of sounds")
        if picture is not None:
            check_picture(picture)
        return _Files(sound=sound, picture=picture)

    def write(self, said: Any) -> list[Path]:
        """Write what was said; the names of the files."""
        written: list[Path] = []
        if not any(one.output is not None for one in said.results):
            return written if self.sound is None else [_codes(said, self.sound.with_suffix(".json"))]
        if self.sound is not None:
            written.append(self._saved(said, self.sound))
        if self.picture is not None and said.audio.duration > 0:
            from multispec.modalities.speech.seeing import draw

            written.append(draw(said, self.picture))
        return written

    def _saved(self, said: Any, path: Path) -> Path:
        """Where the place cannot be written, in the folder for temporary files: nothing is lost."""
        try:
            return Path(said.save(path))
        except OutputError as error:
            other = Path(tempfile.gettempdir()) / path.name
            said.save(other)
            self.failure = error
            return other


def _codes(said: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([one.tokens.tolist() for one in said.results]) + "\n", encoding="utf-8")
    return path


@dataclass
class _Speaking:
    """The text of one command: ``run`` says it, and whatever happens keeps what is there."""

    generator: Any
    text: str
    voice: str | None
    settings: dict[str, Any]
    said: Any = None
    interrupted: bool = False
    failure: GenerationError | UnsupportedError | None = None
    seconds: float = 0.0

    def run(self, *, play: bool, tell: bool) -> None:
        """Speak, showing how far it is."""
        from multispec.modalities.speech.long_texts import speaking

        screen = _Screen(self.generator)
        start = time.perf_counter()
        chunks = speaking(self.generator, self.text, voice=self.voice, watch=screen.step, **self.settings)
        screen.chunks = chunks
        with noticed() as interrupts:
            try:
                with screen:
                    self._hear(chunks, play, tell)
            except KeyboardInterrupt:  # between two rounds, outside the loop that ends quietly
                interrupts.append(0)
            except (GenerationError, UnsupportedError) as error:
                self.failure = error
        self.seconds = time.perf_counter() - start
        self.said = chunks.result
        self.interrupted = bool(interrupts) and not self.said.complete

    def _hear(self, chunks: Any, play: bool, tell: bool) -> None:
        from multispec.modalities.speech.audio import Player

        player = None
        try:
            for chunk in chunks:
                if tell:
                    say(f"{chunks.delivery.seconds:7.3f} s: {chunk.duration:.3f} s of sound", "dim")
                if play and player is None:
                    player = Player(chunk.sampling_rate, chunk.waveform.shape[0])
                    player.__enter__()
                if player is not None:
                    player.play(chunk)
        finally:
            if player is not None:
                player.__exit__(*sys.exc_info())

    def fail(self, files: _Files) -> None:
        """End the command as what happened asks for.

        Raises:
            GenerationError: generation broke.
            OutputError: the file is elsewhere.
            UnsupportedError: the codes cannot become sound, or a loudspeaker is missing.
        """
        if self.failure is not None:
            raise self.failure
        if files.failure is not None:
            raise files.failure
        if self.interrupted:
            raise typer.Exit(INTERRUPTED)
        if any(one.output is None for one in self.said.results):
            notes = [note for one in self.said.results for note in one.report.notes]
            why = " ".join(note.removeprefix("no output: ") for note in notes if "no output: " in note)
            raise UnsupportedError(f"The codes were kept, and there is no sound. {why}")


class _Screen:
    """Progress on the terminal: the utterance, and the seconds of it that are there."""

    def __init__(self, generator: Any) -> None:
        codec = generator.modality.family.codec
        self.chunks: Any = None
        self._pace = codec.sampling_rate / codec.hop
        self._codebooks = codec.num_codebooks
        self._codes = 0
        self._status = console(stderr=True).status("reading the text ...")

    def __enter__(self) -> _Screen:
        self._status.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._status.__exit__(*error)

    def step(self, step: Any) -> None:
        """Take note of a symbol."""
        self._codes = 0 if step.position == 0 else self._codes + 1
        if self._codes % self._codebooks == 0:
            several = len(self.chunks.utterances)
            place = f"utterance {self.chunks.finished + 1} of {several}, " if several > 1 else ""
            self._status.update(f"{place}{self._codes / self._codebooks / self._pace:.1f} s of sound")


def _compared(speaking: _Speaking) -> dict[str, Any]:
    """Both ways once more, without chunks, after the first time has warmed up."""
    from multispec.modalities.speech.long_texts import speak

    found: dict[str, Any] = {}
    made = {}
    for way, drafter in (("plain", None), ("speculative", speaking.settings["drafter"])):
        start = time.perf_counter()
        asked: dict[str, Any] = speaking.settings | {"drafter": drafter}
        made[way] = speak(speaking.generator, speaking.text, voice=speaking.voice, **asked)
        seconds = time.perf_counter() - start
        found[way] = {
            "seconds": seconds,
            "real_time_factor": seconds / max(made[way].audio.duration, 1e-9),
            "target_calls": sum(one.report.target_calls for one in made[way].results),
            "step_compression": _compression(made[way]),
        }
    pairs = list(zip(made["plain"].results, made["speculative"].results, strict=True))
    plain, drafted = made["plain"].audio.waveform, made["speculative"].audio.waveform
    return found | {
        "identical_codes": all(one.tokens.equal(other.tokens) for one, other in pairs),
        "identical_samples": bool(plain.equal(drafted)),
        "promise": speaking.generator.methods.verifier(speaking.settings["verifier"]).exactness,
        "speed_ratio": found["plain"]["seconds"] / found["speculative"]["seconds"],
    }


def _compression(said: Any) -> float:
    """Steps per target call, over all utterances."""
    reports = [one.report for one in said.results]
    calls = sum(one.target_calls for one in reports)
    return float(sum(one.step_compression * one.target_calls for one in reports) / max(calls, 1))


def _tell(
    speaking: _Speaking, written: list[Path], compared: dict[str, Any] | None, as_json: bool, live: bool
) -> None:
    said = speaking.said
    if as_json:
        typer.echo(json.dumps(_found(speaking, written, compared, live), ensure_ascii=False))
    else:
        say(_summary(speaking), "dim")
        if live:
            say(_times(said.delivery), "dim")
        if written:
            say(f"Written: {', '.join(map(str, written))}")
    for number, one in enumerate(said.results, 1):
        if one.finish_reason == "length":
            say(f"Warning: utterance {number}: {'; '.join(one.report.notes) or 'it did not end'}.", "yellow")
    if speaking.failure is not None or speaking.interrupted:
        done = sum(one.finish_reason == "stop" for one in said.results)
        word = "Interrupted" if speaking.interrupted else "Broken off"
        say(f"{word}: {done} of {len(said.utterances)} utterances are finished.", "yellow")
    if compared is not None and not as_json:
        _show_comparison(speaking, compared)


def _found(
    speaking: _Speaking, written: list[Path], compared: dict[str, Any] | None, live: bool
) -> dict[str, Any]:
    said = speaking.said
    parts = [
        {
            "text": utterance.text,
            "tokens": one.tokens.tolist(),
            "from_draft": list(one.from_draft),
            "finish_reason": one.finish_reason,
            "report": one.report.to_dict(),
        }
        for utterance, one in zip(said.utterances, said.results, strict=False)
    ]
    found = {
        "text": speaking.text,
        "voice": speaking.voice,
        "files": [str(path) for path in written],
        "seconds": speaking.seconds,
        "duration": said.audio.duration,
        "sampling_rate": said.audio.sampling_rate,
        "utterances": parts,
    }
    if live:
        found["delivery"] = said.delivery.to_dict()
    return found if compared is None else found | {"compare": compared}


def _summary(speaking: _Speaking) -> str:
    """What it cost, in one line."""
    said = speaking.said
    reports = [one.report for one in said.results]
    several = f"{len(reports)} utterances, " if len(reports) > 1 else ""
    factor = speaking.seconds / said.audio.duration if said.audio.duration else 0.0
    return (
        f"{several}{said.audio.duration:.2f} s of sound in {speaking.seconds:.2f} s "
        f"(real-time factor {factor:.2f}): {sum(one.new_tokens for one in reports)} codes, "
        f"{sum(one.target_calls for one in reports)} target calls, "
        f"step compression {_compression(said):.2f}, "
        f"{sum(one.accepted for one in reports)} of {sum(one.drafted for one in reports)} drafted accepted"
    )


def _times(delivery: Any) -> str:
    return (
        f"first sound after {delivery.first_audio:.3f} s, worst gap between chunks "
        f"{delivery.worst_gap:.3f} s, silence for a listener {delivery.stalled:.3f} s"
    )


def _show_comparison(speaking: _Speaking, compared: dict[str, Any]) -> None:
    codes = sum(len(one.tokens) for one in speaking.said.results)
    rows = [
        [
            way,
            f"{one['seconds']:.2f}",
            f"{codes / one['seconds']:.1f}",
            f"{compared['plain']['seconds'] / one['seconds']:.2f}x",
            f"{one['real_time_factor']:.2f}",
            str(one["target_calls"]),
            f"{one['step_compression']:.2f}",
        ]
        for way, one in ((way, compared[way]) for way in ("plain", "speculative"))
    ]
    screen = console()
    screen.print(table(COLUMNS, rows, "one run each, after the first"))
    same = compared["identical_codes"] and compared["identical_samples"]
    screen.print(verdict("Samples", same, compared["promise"]))
