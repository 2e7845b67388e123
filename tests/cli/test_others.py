"""``multispec`` itself, ``methods``, ``doctor`` and ``demo``."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from typer.testing import CliRunner

import multispec as ms
from multispec import loading
from multispec.cli import app, doctor
from multispec.modalities.speech import Audio
from tests.models import drawing, speaking

LIGHT = """
import sys, types
package = types.ModuleType("multispec")
package.__path__ = [sys.argv[1]]
sys.modules["multispec"] = package
import multispec.cli
heavy = {"torch", "transformers", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"multispec {ms.__version__}\n"


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert all(name in shown for name in ("demo", "text", "image", "speech", "methods", "check", "doctor"))


def test_nothing_heavy_is_imported_for_help() -> None:
    """The commands themselves; what the package imports is not theirs to choose."""
    folder = str(Path(str(ms.__file__)).parent)
    subprocess.run([sys.executable, "-c", LIGHT, folder], check=True, timeout=120)


def test_methods_lists_the_catalog() -> None:
    shown = CliRunner().invoke(app, ["methods"]).stdout
    assert all(entry.name in shown for entry in ms.catalog())


def test_methods_as_json_by_kind() -> None:
    result = CliRunner().invoke(app, ["methods", "--json", "--kind", "verifier"])
    found = {one["name"]: one["exactness"] for one in json.loads(result.stdout)}
    wanted = {e.name: e.exactness for e in ms.catalog() if e.kind == "verifier"}
    assert found == wanted


def test_methods_refuses_other_kinds() -> None:
    result = CliRunner().invoke(app, ["methods", "--kind", "draftr"])
    assert result.exit_code == 2
    assert "Did you mean 'drafter'" in result.stderr


def test_doctor_says_what_there_is() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(result.stdout)
    names = {one["name"]: one for one in found["findings"]}
    assert names["multispec"]["found"] == ms.__version__
    assert names["torchaudio import"]["ok"]
    assert "threads" in names["devices"]["found"]
    assert names["files of sounds"]["found"] == ".wav, .flac, .ogg can be written and read"
    assert all(f"embedded {name} models" in names for name in ("text", "image", "speech"))
    assert result.exit_code == (0 if found["ok"] else 1)


def test_doctor_mends_torchaudio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A torchaudio that links a library which is not there."""
    folder = tmp_path / "torchaudio"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise OSError('libcudart.so: cannot open')\n")
    monkeypatch.setattr(doctor, "version", lambda name: "2.11.0")
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = next(one for one in doctor.examine() if one.name == "torchaudio import")
    assert not found.ok
    assert "libcudart.so" in found.found
    assert "mend_torchaudio.py" in found.mend


def test_doctor_names_the_command_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    found = {one.name: one for one in doctor.examine()}
    assert (found["einops"].ok, found["einops"].mend) == (False, "pip install einops")
    assert found["diffusers"].ok, "an extra is no problem"
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


def test_demo_writes_what_it_shows(target: str, draft: str, tmp_path: Path) -> None:
    arguments = ["demo", "--only", "text", "--model", target, "--draft", draft, "--max-new-tokens", "12"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "the same tokens as without" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["runs"]) == 4
    assert all(one["same_tokens"] for one in report["runs"])
    assert set(report["runs"][0]["drafters"]) == {"plain", "draft_model", "prompt_lookup"}
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 2 + 4 * 3
    assert (tmp_path / "code-greedy.txt").read_text(encoding="utf-8").startswith("def fibonacci")


def test_demo_draws_and_speaks(tmp_path: Path) -> None:
    """Both ways beside each other; the sounds and pictures are there."""
    image, speech, out = tmp_path / "image", tmp_path / "speech", tmp_path / "out"
    drawing.save(image)
    speaking.save(speech, context=48, text_limit=9)
    arguments = ["demo", "--only", "image", "--only", "speech", "--out", str(out)]
    for kind, folder in (("image", image), ("speech", speech)):
        arguments += [f"--{kind}-model", str(folder / "target"), f"--{kind}-draft", str(folder / "draft")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert [one["kind"] for one in report["runs"]] == ["image", "image", "speech", "speech"]
    assert all(one["same_tokens"] for one in report["runs"]) and report["missing"] == {}
    for one in report["runs"]:
        assert set(one["drafters"]) == {"plain", "draft_model", "jacobi"}
        assert one["files"] and all((out / name).stat().st_size > 0 for name in one["files"])
    assert set(report["runs"][2]["delivery"]) == {"plain", "draft_model", "jacobi"}
    assert "first sound after" in result.stdout
    plain, drafted = (Audio.read(out / f"fox-{way}.wav") for way in ("plain", "jacobi"))
    assert plain.waveform.equal(drafted.waveform) and plain.duration > 0


def test_demo_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "assets", lambda: tmp_path / "assets")
    result = CliRunner().invoke(app, ["demo", "--only", "speech", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0 and "No speech: The embedded speech models are not in" in result.stdout
    assert (
        "python recipes/train_speech.py"
        in json.loads((tmp_path / "out/report.json").read_text())["missing"]["speech"]
    )
    wrong = CliRunner().invoke(app, ["demo", "--only", "spech", "--out", str(tmp_path / "out")])
    assert wrong.exit_code == 2 and "Did you mean 'speech'" in wrong.stderr
    own = ["demo", "--only", "image", "--image-model", str(tmp_path), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, own).exit_code == 1
