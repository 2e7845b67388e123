"""Sounds: files of every format, places that cannot be written, other rates, a loudspeaker."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import multispec as ms
from multispec.errors import OutputError, UnsupportedError, UsageError
from multispec.modalities.speech.audio import FORMATS, Audio, Player, joined, silence
from multispec.report import Report
from multispec.stream import Savable

RATE = 8000


def tone(seconds: float = 0.25, channels: int = 1, rate: int = RATE, pitch: float = 440.0) -> Audio:
    """A sine of half the greatest loudness."""
    time = torch.arange(round(seconds * rate)) / rate
    return Audio(0.5 * torch.sin(2 * math.pi * pitch * time).expand(channels, -1).clone(), rate)


def generation(output: Any) -> ms.Generation:
    return ms.Generation(tokens=torch.tensor([1]), output=output, report=Report())


def test_a_sound_knows_its_length() -> None:
    sound = tone(0.5, 2)
    assert sound.duration == 0.5 and isinstance(sound, Savable)
    assert repr(sound) == "Audio(0.50 s, 2 x 4000 samples at 8000 Hz)"


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (torch.zeros(8), RATE, r"A waveform is \[C, N\] of floats .* got torch.float32 of shape \(8,\)"),
        (torch.zeros(0, 8), RATE, r"of shape \(0, 8\)"),
        (torch.zeros(1, 8, dtype=torch.int16), RATE, "got torch.int16"),
        (torch.zeros(1, 8), 0, "A sampling rate is >= 1 samples a second: got 0"),
    ],
)
def test_what_is_no_sound_is_refused(waveform: torch.Tensor, rate: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Audio(waveform, rate)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_files_hold_the_sound(ending: str, channels: int, tmp_path: Path) -> None:
    sound, path = tone(channels=channels), tmp_path / "folder" / f"tone{ending.upper()}"
    assert generation(sound).save(path) == path
    found = Audio.read(path)
    assert (found.sampling_rate, found.waveform.shape) == (RATE, sound.waveform.shape)
    near = 1 / 32768 if ending != ".ogg" else 0.1  # 16 bits; Vorbis leaves out what nobody hears
    assert float((found.waveform - sound.waveform).abs().max()) <= near
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_long_sound_is_written_as_vorbis(tmp_path: Path) -> None:
    """In blocks: in one piece, libsndfile overflows its stack."""
    tone(40.0).save(tmp_path / "long.ogg")
    assert Audio.read(tmp_path / "long.ogg").duration == pytest.approx(40.0, abs=0.1)


def test_what_is_too_loud_is_clipped(tmp_path: Path) -> None:
    Audio(torch.tensor([[3.0, -3.0, 0.5]]), RATE).save(tmp_path / "loud.wav")
    found = Audio.read(tmp_path / "loud.wav").waveform
    assert torch.allclose(found, torch.tensor([[1.0, -1.0, 0.5]]), atol=1e-4)


def test_a_sound_without_samples_is_a_file_too(tmp_path: Path) -> None:
    Audio(torch.zeros(1, 0), RATE).save(tmp_path / "nothing.wav")
    assert Audio.read(tmp_path / "nothing.wav").duration == 0


@pytest.mark.parametrize("name", ["tone.mp3", "tone", "tone.wav.txt"])
def test_an_ending_that_is_no_format(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected one of \.wav, \.flac, \.ogg"):
        tone().save(tmp_path / name)
    with pytest.raises(UsageError, match=f"'{name}' cannot be written: .* and .wav for sounds"):
        generation(tone()).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk to try")
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "full.wav").symlink_to("/dev/full")
    sound = tone()
    with pytest.raises(OutputError, match=r"cannot be written: No space left.*save it to another place"):
        sound.save(tmp_path / "full.wav")
    sound.save(tmp_path / "other.wav")
    assert Audio.read(tmp_path / "other.wav").duration == sound.duration


def test_what_was_there_stays_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tone.wav"
    tone(0.5).save(path)

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OutputError, match="No space left on device"):
        generation(tone(0.1)).save(path)
    assert [one.name for one in tmp_path.iterdir()] == ["tone.wav"]
    assert Audio.read(path).duration == 0.5


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(OutputError, match=r"'.*tone.wav' cannot be written"):
        tone().save(tmp_path / "file" / "tone.wav")


def test_files_that_are_no_sounds(tmp_path: Path) -> None:
    (tmp_path / "words.wav").write_text("words")
    for name in ("words.wav", "missing.wav"):
        with pytest.raises(UsageError, match=f"{name}' cannot be read as a sound"):
            Audio.read(tmp_path / name)


def test_another_rate(tmp_path: Path) -> None:
    """The same tone, as it would have been sampled."""
    found, wanted = tone().resampled(12000), tone(rate=12000)
    assert found.sampling_rate == 12000 and found.duration == 0.25
    middle = slice(300, -300)  # a filter needs something on both sides
    assert torch.allclose(found.waveform[:, middle], wanted.waveform[:, middle], atol=1e-2)
    sound = tone()
    assert sound.resampled(RATE) is sound
    assert Audio(torch.zeros(2, 0), RATE).resampled(12000).sampling_rate == 12000
    sound.save(tmp_path / "tone.wav")
    assert Audio.read(tmp_path / "tone.wav", 4000).waveform.shape == (1, 1000)
    with pytest.raises(UsageError, match="A sampling rate is >= 1"):
        sound.resampled(0)


def test_sounds_one_after_the_other() -> None:
    first = Audio(torch.ones(1, 3), RATE, {"text": "one"})
    found = joined([first, silence(2 / RATE, first), Audio(torch.ones(1, 1), RATE)])
    assert found.waveform.tolist() == [[1, 1, 1, 0, 0, 1]] and found.info["text"] == "one"
    assert (first + first).waveform.shape == (1, 6)
    with pytest.raises(UsageError, match=r"got \(rate, channels\) \[\(4000, 1\), \(8000, 1\)\] of 2 sounds"):
        _ = first + Audio(torch.ones(1, 1), 4000)
    with pytest.raises(UsageError, match="of 0 sounds"):
        joined([])


class Loudspeaker:
    """sounddevice as far as it is used."""

    def __init__(self, broken: bool = False) -> None:
        self.most = 2  # sounds, before it goes away
        self.heard: list[Any] = []
        self.done: list[str] = []
        self._broken = broken

        class PortAudioError(Exception):
            pass

        self.PortAudioError = PortAudioError

    def OutputStream(self, **settings: Any) -> Loudspeaker:  # noqa: N802
        if self._broken:
            raise self.PortAudioError("Error querying device -1")
        self.settings = settings
        return self

    def write(self, rows: Any) -> None:
        if len(self.heard) == self.most:
            raise self.PortAudioError("Device unavailable")
        self.heard.append(rows)

    def start(self) -> None:
        self.done.append("start")

    def stop(self) -> None:
        self.done.append("stop")

    def abort(self) -> None:
        self.done.append("abort")

    def close(self) -> None:
        self.done.append("close")


def test_a_loudspeaker_is_played_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Loudspeaker()
    monkeypatch.setitem(sys.modules, "sounddevice", found)
    tone(channels=2).play()
    assert found.heard[0].shape == (2000, 2) and found.done == ["start", "stop", "close"]
    assert found.settings == {"samplerate": RATE, "channels": 2, "dtype": "float32"}
    with pytest.raises(UnsupportedError, match="plays no sound: Device unavailable"):
        with Player(RATE) as player:
            player.play(tone())
            player.play(tone())
    assert found.done[-2:] == ["abort", "close"]


def test_a_machine_without_a_loudspeaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", Loudspeaker(broken=True))
    with pytest.raises(UnsupportedError, match="plays no sound: Error querying device -1. Connect"):
        tone().play()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UnsupportedError, match="needs the package sounddevice.*pip install 'sounddevice'"):
        tone().play()


def test_without_the_libraries_the_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("soundfile", "torchaudio.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnsupportedError, match=r"soundfile.*pip install 'multispec\[speech\]'"):
        tone().save(tmp_path / "tone.wav")
    with pytest.raises(UnsupportedError, match=r"torchaudio.*pip install 'multispec\[speech\]'"):
        tone().resampled(4000)
