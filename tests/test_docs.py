"""The documentation is true to the code: links, commands, options, tables, and the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest
import typer

from sanitize.cli import app
from sanitize.defenses import DEFENSES
from sanitize.types import Verdict

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands
DOCTESTED = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "sanitize").rglob("*.py")
    if "    >>> " in path.read_text()
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PROSE = re.compile(r"`sanitize ([a-z][^`]*)`")
_NO_COMMANDS = {"sanitize encoder --help", "sanitize --help"}


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shell_lines(page: Path) -> list[str]:
    """Commands of the shell blocks, continued lines joined, comments removed."""
    blocks = [body for language, body in _FENCE.findall(page.read_text()) if language in ("bash", "sh", "console")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"(^|\s)#\s.*", "", line).strip() for line in lines]


def invocations(page: Path) -> list[tuple[str, str]]:
    """Each `sanitize COMMAND ...` in shell blocks and in prose: (command, the rest)."""
    found = []
    for line in shell_lines(page):
        for part in re.split(r"&&|\|\||;|\|", line):
            match = re.match(r"(?:\S*/)?sanitize\s+(.*)", part.strip())
            if match:
                found.append(match[1])
    found += [text for text in _PROSE.findall(prose(page)) if f"sanitize {text}" not in _NO_COMMANDS]
    return [(text.split()[0], text) for text in found]


def options_of(command: str) -> set[str]:
    return {name for parameter in COMMANDS[command].params for name in (*parameter.opts, *parameter.secondary_opts)}


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def table(page: Path, first: str) -> list[list[str]]:
    """Rows of the table whose first column is headed `first`."""
    lines = page.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    return rows


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_relative_link_leads_somewhere(page):
    for target in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page_id(page)} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page_id(page)} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_and_option_exists(page):
    for command, text in invocations(page):
        assert command in COMMANDS, f"{page_id(page)}: sanitize {text}"
        named = set(re.findall(r"(?<!\S)(--?[a-z][\w-]*)", text))
        assert named <= options_of(command), f"{page_id(page)}: sanitize {text}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_option_in_prose_exists(page):
    known = {name for command in COMMANDS for name in options_of(command)} | {"--help"}
    named = {
        option for code in re.findall(r"`([^`\n]+)`", prose(page)) for option in re.findall(r"--[a-z][\w-]*", code)
    }
    assert named <= known, f"{page_id(page)}: {named - known}"


def test_commands_were_found_at_all():
    assert {command for page in PAGES for command, _ in invocations(page)} >= {"demo", "encoder", "intake", "bind"}


@pytest.mark.parametrize("method", sorted(DEFENSES))
def test_the_parameter_table_is_that_of_the_code(method):
    documented = table(ROOT / f"docs/methods/{method}.md", "parameter")
    assert documented == [
        [f"`{name}`", str(item["value"]), str(item["paper"]), item["description"]]
        for name, item in DEFENSES[method]().parameters().items()
    ]


@pytest.mark.parametrize(
    ("page", "first"), [("README.md", "exit code"), ("docs/report.md", "code"), ("docs/exit-codes.md", "exit code")]
)
def test_the_exit_codes_are_those_of_the_code(page, first):
    documented = {int(row[0]): row[1] for row in table(ROOT / page, first)}
    assert set(documented) == {2, *(verdict.exit_code for verdict in Verdict)}
    for verdict in Verdict:
        assert documented[verdict.exit_code].startswith(f"`{verdict.value}`")


def test_numbers_that_help_to_choose_are_those_of_the_methods_pages():
    """Each row with numbers links to the page that has them."""
    choosing = ROOT / "docs/choosing.md"
    compared = 0
    for line in choosing.read_text().splitlines():
        link = re.match(r"\| \[`[\w-]+`\]\((methods/[\w-]+\.md)", line)
        numbers = re.findall(r"\d\.\d{2,}", line)
        if link and numbers:
            page = (choosing.parent / link[1]).read_text()
            assert [number for number in numbers if number not in page] == [], line
            compared += len(numbers)
    assert compared > 40


def test_the_verdicts_of_the_quickstart_are_those_of_the_code():
    documented = {row[0]: row[1] for row in table(ROOT / "docs/quickstart.md", "verdict")}
    assert documented == {f"`{verdict.value}`": str(verdict.exit_code) for verdict in Verdict}


@pytest.mark.parametrize("name", DOCTESTED)
def test_the_examples_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert failed == 0


def test_there_are_examples_to_run():
    finder = doctest.DocTestFinder()
    found = [len(test.examples) for name in DOCTESTED for test in finder.find(importlib.import_module(name))]
    assert sum(found) >= 10


def test_findings_that_the_code_can_make_are_documented():
    code = "\n".join(path.read_text() for path in (ROOT / "sanitize").rglob("*.py"))
    made = set(re.findall(r'"((?:artifact|isolation|verify|weights)-[a-z-]+)"', code))
    pages = "\n".join((ROOT / "docs" / page).read_text() for page in ("threat-model.md", "report.md"))
    assert {rule for rule in made if f"`{rule}`" not in pages} == set()
