"""What the documents say can be typed: their blocks run, their commands exist, everything public says what it is.

A fence whose info string has the word ``run`` is executed, those of one document in order in one working folder; Python
blocks of a document share their names. Other fences are checked for syntax, and every ``python cli.py …`` in them
against the command line.
"""

from __future__ import annotations

import ast
import doctest
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from cli import app
from embedcache.backbones import ALIASES, FAMILIES, tower_of
from heads import config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])
SHELLS = ("bash", "sh", "shell", "console")
HEAVY = {"torch", "timm", "transformers", "pandas", "h5py", "numpy", "sklearn"}
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<info>[^\n`]*)\n(?P<text>.*?)^ *(?P=ticks) *$", re.S | re.M
)


@dataclass(frozen=True)
class Fence:
    """A fenced block. line: of its first line of text, counted from 1."""

    document: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def fences(document: Path) -> Iterator[Fence]:
    source = document.read_text(encoding="utf-8")
    for found in _FENCE.finditer(source):
        line = source.count("\n", 0, found.start("text")) + 1
        language, *words = found["info"].split() or [""]
        yield Fence(document, line, language, tuple(words), textwrap.dedent(found["text"]))


FENCES = [fence for document in DOCUMENTS for fence in fences(document)]
RUN = sorted({fence.document for fence in FENCES if "run" in fence.words})


# ---------------------------------------------------------------------------------------- blocks that run


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which ``python cli.py`` means this interpreter and this command line, offline."""
    work, binaries = tmp_path / "work", tmp_path / "bin"
    work.mkdir()
    binaries.mkdir()
    (work / "cli.py").symlink_to(ROOT / "cli.py")
    shim = binaries / "python"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    for name in [name for name in os.environ if name.startswith("EMBEDCACHE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    for name, value in (("PYTHONPATH", str(ROOT)), ("HF_HUB_OFFLINE", "1"), ("MPLBACKEND", "agg")):
        monkeypatch.setenv(name, value)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # more threads fight where tests run beside each other
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(work)
    return work


def run_shell(fence: Fence) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", fence.text],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{fence} ended with {done.returncode}\n{done.stdout}"


def run_python(fence: Fence, names: dict[str, Any]) -> None:
    """Line numbers in a traceback are the document's."""
    exec(compile("\n" * (fence.line - 1) + fence.text, str(fence.document), "exec"), names)


def test_the_readme_has_blocks_that_run() -> None:
    assert {fence.language for fence in FENCES if fence.document.name == "README.md" and "run" in fence.words} >= {
        "bash",
        "python",
    }


@pytest.mark.parametrize("document", RUN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_blocks_of_a_document_run_one_after_the_other(document: Path, work: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for fence in (fence for fence in FENCES if fence.document == document and "run" in fence.words):
        if fence.language == "python":
            run_python(fence, names)
        else:
            assert fence.language == "bash", f"{fence}: what would run {fence.language}?"
            run_shell(fence)


@pytest.mark.parametrize("fence", [fence for fence in FENCES if fence.language in ("python", "py")], ids=str)
def test_python_blocks_are_python(fence: Fence) -> None:
    examples = doctest.DocTestParser().get_examples(fence.text)
    ast.parse("".join(example.source for example in examples) or fence.text)


@pytest.mark.parametrize("fence", [fence for fence in FENCES if fence.language in ("yaml", "yml")], ids=str)
def test_yaml_blocks_that_name_a_head_are_grid_files(fence: Fence) -> None:
    document = yaml.safe_load(fence.text)
    if isinstance(document, dict) and "head" in document:
        config.parse(document, str(fence))


# ------------------------------------------------------------------------------------ commands in documents


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of each ``python cli.py`` in a shell block, one list a command."""
    for line in text.replace("\\\n", " ").splitlines():
        if "cli.py" not in line:
            continue
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        yield from _of_cli(list(lexer))


def _of_cli(tokens: list[str]) -> Iterator[list[str]]:
    """Commands are parted by ``&&``, ``;``, ``|`` and the like; the comment is gone already."""
    part: list[str] = []
    for token in [*tokens, ";"]:
        if set(token) <= set("();<>|&"):
            if "cli.py" in part:
                yield part[part.index("cli.py") + 1 :]
            part = []
        else:
            part.append(token)


def options_of(arguments: list[str]) -> list[str]:
    """The options as they are written, without their values."""
    return [word.partition("=")[0] for word in arguments if re.match(r"--?[A-Za-z]", word)]


@cache
def help_of(*command: str) -> str:
    done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.output


def mentioned(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text))


IN_DOCUMENTS = [
    pytest.param(fence, words, id=f"{fence} {' '.join(words)[:60]}")
    for fence in FENCES
    if fence.language in SHELLS
    for words in command_lines(fence.text)
]


@pytest.mark.parametrize(("fence", "words"), IN_DOCUMENTS)
def test_commands_in_documents_exist_with_their_options(fence: Fence, words: list[str]) -> None:
    at = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    assert set(options_of(words[:at])) <= mentioned(help_of())
    if at < len(words):
        assert words[at] in COMMANDS, f"{fence}: no command {words[at]}"
        assert set(options_of(words[at:])) <= mentioned(help_of(words[at]))


@pytest.mark.parametrize(("fence", "words"), IN_DOCUMENTS)
def test_backbones_in_documents_are_aliases_or_have_a_family(fence: Fence, words: list[str]) -> None:
    named = [value for option, value in pairwise(words) if option == "--backbone"]
    named = [tower_of(name)[0] for name in named]
    assert not [name for name in named if name not in ALIASES and name.partition(":")[0] not in FAMILIES], fence


@pytest.mark.parametrize("fence", [fence for fence in FENCES if fence.language in SHELLS[:-1]], ids=str)
def test_shell_blocks_are_shell(fence: Fence) -> None:
    done = subprocess.run(["bash", "-n"], input=fence.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{fence}: {done.stderr}"


def test_command_lines_are_found_in_shell() -> None:
    text = "$ A=1 python cli.py ls --json | head -1  # --not\npython cli.py \\\n  rm 'a b' --yes && echo --no\necho"
    assert list(command_lines(text)) == [["ls", "--json"], ["rm", "a b", "--yes"]]
    assert options_of(["extract", "--set=a=b", "--limit", "-1", "-h", "a-b"]) == ["--set", "--limit", "-h"]


# ----------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_whole_and_fits_a_terminal(command: str) -> None:
    text = help_of(command)
    parameters = COMMANDS[command].params
    assert {name for one in parameters if one.param_type_name == "option" for name in one.opts} <= mentioned(text)
    assert COMMANDS[command].help
    assert not [one.name for one in parameters if not one.help]
    assert max(map(len, text.splitlines())) <= 80


def test_help_lists_every_command_with_what_it_does() -> None:
    text = help_of()
    assert max(map(len, text.splitlines())) <= 80
    for name in COMMANDS:
        assert re.search(rf"^  {re.escape(name)}\s+\S", text, re.M)


@pytest.mark.parametrize("command", [[], ["extract"], ["fit-head"]], ids=["cli", "extract", "fit-head"])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "cli.py", *command, "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert {"typer", "json"} <= imported
    assert not imported & HEAVY


# ----------------------------------------------------------------------------------------------- docstrings


def modules() -> dict[str, Path]:
    paths = [ROOT / "cli.py", *(ROOT / "embedcache").rglob("*.py"), *(ROOT / "heads").rglob("*.py")]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(paths)}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


MODULES = modules()


def undocumented(node: ast.Module | ast.ClassDef, name: str) -> Iterator[str]:
    """Names of what is public below a node and says nothing; members of a Protocol may leave it to the protocol."""
    if not ast.get_docstring(node):
        yield name
    is_protocol = isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            own = f"{name}.{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child, own)
            elif not is_protocol and not ast.get_docstring(child):
                yield own


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert list(undocumented(tree, module)) == []


def test_what_has_no_docstring_is_found() -> None:
    text = '''
class A:
    """Said."""
    def said(self): "Said."
    def silent(self): ...
    def _private(self): ...
class P(Protocol):
    """Said."""
    def member(self): ...
def silent(): ...
'''
    assert list(undocumented(ast.parse(text), "m")) == ["m", "m.A.silent", "m.silent"]


@pytest.mark.parametrize(
    "module", [name for name, path in MODULES.items() if ">>>" in path.read_text(encoding="utf-8")]
)
def test_examples_in_docstrings_are_true(module: str) -> None:
    assert doctest.testmod(import_module(module)).failed == 0
