"""The file tree in README.md is the true one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LISTED_FOLDERS = ("multispec", "modalities", "recipes")  # here each module has its own line
INDENT = 2


def paths_of_tree(text: str) -> list[str]:
    """The paths of an indented tree: the first word of each line, below its folders."""
    paths: list[str] = []
    parents: list[str] = []
    for line in text.splitlines():
        found = re.match(r"( *)(\S+)", line)
        if found is None:
            continue
        depth = len(found[1]) // INDENT
        parents = [*parents[:depth], found[2].rstrip("/")]
        paths.append("/".join(parents))
    return paths


@pytest.fixture(scope="module")
def tree() -> list[str]:
    section = (ROOT / "README.md").read_text().partition("## Files")[2]
    return paths_of_tree(section.split("```")[1].partition("\n")[2])


@pytest.fixture(scope="module")
def files() -> list[str]:
    """The files of the repository: tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        pytest.skip("not a git checkout")
    return [name for name in run.stdout.splitlines() if (ROOT / name).exists()]


def test_tree_is_read_with_its_folders() -> None:
    text = "core/        the core\n  loop.py    THE loop\n  cli/\n    main.py    one\nMakefile"
    assert paths_of_tree(text) == [
        "core",
        "core/loop.py",
        "core/cli",
        "core/cli/main.py",
        "Makefile",
    ]


def test_each_path_of_the_tree_exists(tree: list[str]) -> None:
    assert tree
    assert [path for path in tree if not (ROOT / path).exists()] == []


def test_each_top_level_name_is_in_the_tree(tree: list[str], files: list[str]) -> None:
    top = {name.split("/")[0] for name in files}
    assert sorted(top - set(tree) - {"README.md"}) == []


def test_each_module_is_in_the_tree(tree: list[str], files: list[str]) -> None:
    modules = {
        name
        for name in files
        if name.split("/")[0] in LISTED_FOLDERS and name.endswith(".py") and is_described(name)
    }
    assert sorted(modules - set(tree)) == []


def is_described(name: str) -> bool:
    """The line of a folder stands for its `__init__.py`."""
    return not name.endswith("/__init__.py") or name == "multispec/__init__.py"
