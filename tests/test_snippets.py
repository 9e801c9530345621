"""Commands and snippets of README and docs: each is run here, or says where it is run, or why it is not.

A comment in front of a block says which. Blocks of a page run in order, in one folder with what newcomers would have.

- `<!-- run -->`, or `<!-- run alone -->`: what it changes is forgotten.
- `<!-- run: as FILE -->`: the block is a file that later ones need.
- `<!-- dry run -->`: its commands could run as written; they are given --dry-run.
- `<!-- run by: tests/FILE.py -->`, or `<!-- not run: reason -->`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from typer.testing import CliRunner

from sanitize.cli import app
from sanitize.data import load_images
from sanitize.data.writing import write_parquet
from sanitize.intake import Knowledge, take_in
from tests.conftest import copied_store

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("bash", "sh", "console", "python")  # of what can be run; others are files and output
_BLOCK = re.compile(r"(?:^<!-- ([^\n]*?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"(run|run alone|dry run|run: as \S+|run by: tests/\S+\.py|not run: .{8,})")
PAGES_WITHOUT_COMMENTS = {  # page -> how a block begins -> its mark
    "README.md": {
        "python3 -m venv .venv && .venv/bin/pip install -e . &&": "not run: it installs, and the demo takes minutes",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]'": "not run: it runs the tests",
        "sanitize encoder models:/suspect/1 --method bmaiu": "dry run",
        "# A file that somebody gave you": "run by: tests/cli/test_commands.py",
        "import sanitize": "not run: it takes minutes; docs/pipelines.md runs the same with a quicker method",
    },
    "docs/drill.md": {"sanitize encoder": "run by: tests/test_drill.py"},
    "docs/policies.md": {
        "sanitize encoder": "run by: tests/test_policies.py",
        "from sanitize import Policy": "run by: tests/test_policies.py",
    },
}


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    number: int
    mark: str
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}#{self.number}"


def blocks(page: Path) -> list[Block]:
    found = [
        Block(page, number, mark or "", language, text)
        for number, (mark, language, text) in enumerate(_BLOCK.findall(page.read_text()), start=1)
    ]
    found = [block for block in found if block.language in LANGUAGES or block.mark]
    marks = PAGES_WITHOUT_COMMENTS.get(page.relative_to(ROOT).as_posix(), {})
    return [replace(block, mark=block.mark or _mark_of(block.text, marks)) for block in found]


def _mark_of(text: str, marks: dict[str, str]) -> str:
    return next((mark for start, mark in marks.items() if text.startswith(start)), "")


ALL = {block.name: block for page in PAGES for block in blocks(page)}
RUN = [page for page in PAGES if any(re.match("run$|run alone|run: as|dry run", block.mark) for block in blocks(page))]


@pytest.mark.parametrize("name", ALL)
def test_every_block_is_run_or_says_why_not(name):
    mark = ALL[name].mark
    assert _MARK.fullmatch(mark), (
        "put <!-- run --> or <!-- not run: reason --> in front of it; see tests/test_snippets.py"
    )
    if mark.startswith("run by: "):
        assert (ROOT / mark.removeprefix("run by: ")).is_file()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, empty_store, encoders):
    """What the pages speak of: models:/suspect/1, its cleaned version 2 with the alias, data sets, and files."""
    folder = tmp_path_factory.mktemp("prepared")
    store = copied_store(empty_store, folder)
    digits = load_images("digits")
    write_parquet(digits.subset(slice(0, 600)), folder / "train.parquet")
    write_parquet(digits.subset(slice(1400, None)), folder / "test.parquet")
    write_parquet(digits.subset(slice(0, 300)).without_labels(), folder / "clean.parquet")
    for name in ("scraped", "photographs"):
        write_parquet(digits.subset(slice(0, 300)), folder / f"{name}.parquet")
    torch.save(torchvision.models.resnet18().state_dict(), folder / "encoder.pth")
    pixels = digits.images[:300].permute(0, 2, 3, 1).numpy()
    np.savez(folder / "clean.npz", images=pixels)
    np.savez(folder / "data.npz", images=pixels, labels=digits.labels[:300].numpy())
    for name in ("clean-images", "photographs"):
        pictures(folder / name)
    shutil.copytree(encoders.trigger_file.parent, folder / "trigger")
    shutil.copy(encoders.trigger_file, folder / "trigger.yaml")
    for file in encoders.trigger_file.parent.iterdir():
        shutil.copy(file, folder / file.name)
    known = Knowledge(
        data="digits#0:420",
        probe_data="digits#0:1400",  # a probe of fewer images loses two points of accuracy to chance
        test_data="digits#1400:",
        triggers=(encoders.trigger_file,),
        arch="small-cnn",
        normalization="half",
        image_size=32,
    )
    for name, file in (("suspect", encoders.backdoored_file), ("encoder", encoders.clean_file)):
        take_in(file, name, known, tracking_uri=store)
    take_in(folder / "scraped.parquet", "scraped", Knowledge(), tracking_uri=store)
    from sanitize import Sanitizer
    from sanitize.defenses import CLP

    report = Sanitizer(CLP(threshold=1.0), tracking_uri=store, workdir=folder / "clp").run("models:/suspect/1")
    assert report.verdict == "pass", report.reasons  # so that the alias is there
    shutil.copy(folder / "clp" / "encoder.onnx", folder)
    return folder


def pictures(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    for number, image in enumerate(load_images("digits#0:80").images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).resize((40, 48)).save(folder / f"{number}.png")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_page_run(page, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sanitize.trial.LIMIT", 0.5)
    names: dict[str, object] = {"images": torch.rand(2, 3, 32, 32), "array": np.zeros((2, 3, 32, 32), np.float32)}
    enter(copied(prepared, tmp_path / "work"), monkeypatch)
    for block in blocks(page):
        if block.mark == "run alone":
            with monkeypatch.context() as alone:
                enter(copied(prepared, tmp_path / str(block.number)), alone)
                run(block, names)
        else:
            run(block, names)


def copied(prepared: Path, folder: Path) -> Path:
    """The artifacts of the copy stay where they were made."""
    return Path(shutil.copytree(prepared, folder, ignore=shutil.ignore_patterns("mlartifacts", "clp")))


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")


def run(block: Block, names: dict[str, object]) -> None:
    if block.mark.startswith("run: as "):
        Path(block.mark.removeprefix("run: as ")).write_text(block.text)
    elif block.mark == "dry run":
        for command in commands(block.text):
            invoked(command, ["--dry-run"])
    elif block.mark in ("run", "run alone") and block.language == "python":
        exec(compile(block.text, block.name, "exec"), names)
    elif block.mark in ("run", "run alone"):
        found = commands(block.text)
        for command in found:
            invoked(command, [])
        if not found:
            shell(block.text)


def commands(text: str) -> list[list[str]]:
    """Arguments of the `sanitize` commands, when there is nothing else in a block."""
    lines = [re.sub(r"(^|\s)#\s.*", "", line) for line in text.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line) for line in lines if line.strip()]
    plain = all(line[0] == "sanitize" and not {"&&", "||", ";", "|", ">"} & set(line) for line in found)
    return [line[1:] for line in found] if plain else []


def invoked(command: list[str], options: list[str]) -> None:
    has_them = {name for parameter in parameters(command[0]) for name in parameter.opts}
    result = CliRunner().invoke(app, [*command, *(option for option in options if option in has_them)])
    assert result.exit_code in (0, 1, 3), (command, result.stderr)


def parameters(command: str) -> list:
    from typer.main import get_command

    return get_command(app).commands[command].params


def shell(text: str) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
