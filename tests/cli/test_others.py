"""``multispec`` itself, ``methods``, ``doctor`` and ``demo``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from typer.testing import CliRunner

import multispec as ms
from multispec import loading
from multispec.cli import _survey, app, doctor, methods
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "draftr"], "Did you mean 'drafter'"),
        (["--exactness", "laws"], "Did you mean 'law'"),
        (["--stream", "sound"], "Known: image, speech, text"),
        (["--markdown", "--json"], "prints the whole page"),
    ],
)
def test_methods_refuses_what_it_does_not_know(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["methods", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "within", "without"),
    [
        (["--exactness", "law"], {"rejection", "mcsd"}, {"coupled", "typical", "rest"}),
        (["--stream", "image", "--kind", "verifier"], {"lantern", "rejection"}, {"zipr", "jacobi"}),
        (["--stream", "text"], {"rest", "fixed"}, {"zipar", "lantern", "depth_ngram"}),
        (["--search", "SAM-Decoding"], {"sam_decoding", "suffix_automaton"}, {"rest"}),
        (["--search", "2405.19261"], {"cascade", "cascade_chow"}, {"contrastive"}),
        (["--no-presets", "--kind", "drafter"], {"prompt_lookup"}, {"pld", "copyspec"}),
    ],
)
def test_methods_can_be_searched(arguments: list[str], within: set[str], without: set[str]) -> None:
    result = CliRunner().invoke(app, ["methods", "--json", *arguments])
    found = {one["name"] for one in json.loads(result.stdout)}
    assert within <= found and not without & found


def test_the_page_of_methods_is_up_to_date() -> None:
    """docs/methods.md is what the command prints: multispec methods --markdown > docs/methods.md."""
    written = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    assert CliRunner().invoke(app, ["methods", "--markdown"]).stdout == written


def test_the_survey_names_what_there_is() -> None:
    """Each system is in the catalog or says what it would need; links lead to files."""
    known = {f"{one.kind} {one.name}" for one in ms.catalog()}
    systems = [one for some in _survey.SURVEY.values() for one in some]
    assert len(systems) > 100
    for one in systems:
        assert one.methods or one.note, one.name
        assert set(one.methods) <= known, one.name
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\(\.\./([^)]+)\)", methods.page())
    assert links and all((root / link).exists() for link in links)


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
