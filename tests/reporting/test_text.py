"""The table and Markdown."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from sanitize.reporting import description, render
from sanitize.reporting.wording import metric_title, number, plain
from sanitize.types import Verdict
from tests.reporting.samples import HOSTILE, empty, hostile, report


@pytest.mark.parametrize("verdict", list(Verdict))
def test_table_starts_with_verdict_and_reasons(verdict: Verdict):
    lines = render(report(verdict), "table").splitlines()
    assert lines[0] == f"{verdict.value.upper()}  models:/suspect/1"
    assert lines[2] == "- attack success rate 99.7% before, 6.6% after (allowed 10.0%)"


@pytest.mark.parametrize("subject", [report(), hostile(), empty()])
def test_table_fits_80_columns_but_for_links_and_commands(subject):
    text = render(subject, "table")
    body = text.partition("\nCleaned model")[0].splitlines()[1:]
    assert max((len(line) for line in body), default=0) <= 80


def test_table_never_breaks_a_link():
    url = "http://127.0.0.1:5000/#/experiments/1/runs/" + "a" * 100
    assert url in render(report(outputs={"run_url": url}), "table")


def test_table_numbers_and_what_was_not_measured():
    text = render(report(), "table")
    assert re.search(r"Attack success rate +99\.7% +6\.6% +-93\.1 pp", text)
    assert re.search(r"Similarity under our own canary +0\.912 +0\.204 +-0\.708", text)
    assert re.search(r"Drill gap +not measured +not measured", text)
    assert "- Drill gap: no drill was asked for (--drill)" in text
    assert text.rstrip().endswith("Next\n  sanitize verify models:/suspect/2")


def test_a_null_without_a_reason_is_said():
    text = render(report(metrics={"before": {"base_rate": None}, "after": {"base_rate": 0.0}}, unmeasured={}), "table")
    assert "- Base rate of the target class: no reason was recorded" in text
    assert re.search(r"not measured +0\.0%", text)


def test_colour_only_when_asked():
    assert "\x1b[" not in render(report(), "table")
    coloured = render(report(), "table", color=True)
    assert "\x1b[1;32mPASS" in coloured
    assert "\x1b[2J" not in render(hostile(), "table", color=True)


def test_markdown_has_every_section_and_escapes_names():
    text = render(report(), "markdown")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# Sanitization report: pass",
        "## Before and after",
        "## Not measured",
        "## Findings",
        "## Outputs",
        "## Next",
        "## Parameters",
        "## Subject",
        "## Data",
        "## Environment",
    ]
    assert "| Attack success rate | 99.7% | 6.6% | -93.1 pp |" in text
    assert "| learning\\_rate | 0.01 | 0.05 | of SGD in both stages |" in text


def test_markdown_tables_keep_their_columns_whatever_the_names():
    widths = {}
    for line in render(hostile(), "markdown").splitlines():
        if line.startswith("|"):
            cells = len(re.findall(r"(?<!\\)\|", line))
            widths.setdefault(cells, []).append(line)
    assert set(widths) <= {3, 4, 5}  # two, three and four columns
    assert "\n`" not in render(hostile(), "markdown")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("models:/suspect/1", "[models:/suspect/1](#/models/suspect/versions/1)"),
        ("models:/my suspect/12", "[models:/my suspect/12](#/models/my%20suspect/versions/12)"),
        ("models:/a](x)b/1", "(#/models/a%5D%28x%29b/versions/1)"),
        ("models:/m-0123", "models:/m-0123 with"),
        ("runs:/0123/model", "runs:/0123/model with"),
    ],
)
def test_description_leads_back_to_the_suspect(uri, shown):
    subject = report()
    assert shown in description(replace(subject, subject=subject.subject | {"uri": uri}))


def test_description_is_short_and_has_the_table():
    text = description(report())
    assert text.startswith("**Verdict: pass.** No evidence of a backdoor")
    assert "| Clean accuracy | 97.4% | 97.0% | -0.4 pp |" in text.replace("\u00a0", "")
    assert "must be refitted" in text
    assert "Parameters" not in text
    assert len(text) < 2000
    assert "<script" not in description(hostile())


def test_plain_shows_what_hides():
    assert plain(HOSTILE) == "<script>alert(1)</script>|`x`\\x1b[2J\\x00\\u202e\"'&{{ 7*7 }}\\udc80 second"
    assert plain("naïve 模型 café") == "naïve 模型 café"
    assert plain({"a": [1, True, None, 0.5]}) == "a: 1, yes, none, 0.5"


def test_words_for_measures():
    assert metric_title("attack_success_rate/patch") == "Attack success rate (patch)"
    assert metric_title("something_new") == "Something new"
    assert (number(0.1234, True), number(0.1234, False), number(None, True)) == ("12.3%", "0.123", "not measured")


def test_markdown_shown_as_html_has_no_tag_of_a_name():
    """As a renderer that lets HTML through shows it: no script, link or picture comes from a name of data or labels."""
    names = [
        "<script>alert(1)</script>",
        "[x](javascript:alert(1))",
        "![x](https://example.org/x)",
        "https://example.org",
    ]
    subject = report(
        subject={"uri": f"models:/{names[0]}/1", "kind": "classifier", "architecture": names[1]},
        data={"uri": names[2], "labels": names, names[0]: names[0]},
        reasons=names,
    )
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(
        render(subject, "markdown") + description(subject)
    )
    kinds = {child.type for token in tokens for child in (token, *(token.children or ()))}
    assert "table_open" in kinds
    assert kinds.isdisjoint({"html_block", "html_inline", "link_open", "image"})
    shown = "".join(child.content for token in tokens for child in token.children or ())
    assert all(name in shown for name in names[:3])
