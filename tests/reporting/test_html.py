"""The page: structure read by a parser, then opened in a browser."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from sanitize.reporting import render, write
from sanitize.types import Report, Verdict
from tests.reporting.samples import HOSTILE, empty, figures, hostile, report
from tests.reporting.test_figures import pointable_figure

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Collects tags, headings and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[tuple[int, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.text += " "
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data
        if self._open and re.fullmatch("h[1-6]", self._open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.parametrize("subject", [*map(report, Verdict), hostile(), empty()])
def test_structure(subject: Report):
    page = Page(render(subject, "html", figures=figures()))
    assert page._open == []
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.headings[1][1] == f"Verdict: {subject.verdict.value}"
    assert len(page.named("caption")) == len(page.named("table"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.named("th"))
    assert all(attributes.get("alt") for attributes in page.named("img"))
    assert {"script", "iframe", "object", "embed", "form", "svg"}.isdisjoint(tag for tag, _ in page.tags)


@pytest.mark.parametrize("subject", [report(), hostile()])
def test_nothing_is_loaded(subject: Report):
    page = Page(render(subject, "html", figures=figures()))
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith("data:")
    assert "default-src 'none'" in (page.named("meta")[1]["content"] or "")
    style = re.search(r"<style>(.*?)</style>", render(subject, "html"), re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_content():
    page = Page(render(report(), "html", figures=figures()))
    text = " ".join(page.text.split())
    for expected in (
        "No evidence of a backdoor was found by what was measured.",
        "Attack success rate 99.7% 6.6% -93.1 pp",
        "Drill gap: no drill was asked for (--drill)",
        "Downstream heads must be refitted on the cleaned encoder's features",
        "Retrained head 97.4% 97.0%",
        "Old head 97.4% 83.0%",
        "learning_rate 0.01 0.05 of SGD in both stages",
        "abab",
        "cdcd",
        "sanitize encoder models:/suspect/1 --method bmaiu --seed 0",
        "2.15.0",
        "the first two principal components",
    ):
        assert expected in text
    order = [
        text.index(word) for word in ("Verdict: pass", "Before and after", "What was not measured", "How to reproduce")
    ]
    assert order == sorted(order)


def test_a_classifier_is_told_nothing_about_heads():
    text = render(report(subject={"uri": "models:/c/1", "kind": "classifier"}), "html")
    assert "refitted" not in text


def test_hostile_names_stay_text():
    text = render(hostile(), "html")
    assert "{{ 7*7 }}" in text  # not evaluated
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_same_report_gives_the_same_page():
    assert render(report(), "html", figures=figures()) == render(report(), "html", figures=figures())


@pytest.mark.parametrize("scheme", [0, 1, 2])
def test_contrast(scheme: int):
    """WCAG contrast of at least 4.5 for every text colour on every ground it is used on: light, dark, print."""
    source = files("sanitize.reporting").joinpath("report.html.j2").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", source, re.DOTALL)[scheme]
    colors = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
    pairs = [(text, "ground") for text in ("ink", "soft", "fail", "inconclusive")] + [("ink", "code")]
    for verdict in Verdict:
        pairs += [(verdict.value, f"{verdict.value}-ground"), ("ink", f"{verdict.value}-ground")]
    for text, ground in pairs:
        assert _contrast(colors[text], colors[ground]) >= 4.5, (text, ground)


def _contrast(first: str, second: str) -> float:
    def luminance(color: str) -> float:
        channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM
    flags = ["headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"]
    flags += ["disable-component-update", "disable-sync", "hide-scrollbars", "enable-logging=stderr"]
    command = [CHROMIUM, *(f"--{flag}" for flag in flags), f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_a_hostile_model_name_runs_nothing(tmp_path: Path):
    page = tmp_path / "report.html"
    subject = hostile()
    subject.subject["uri"] = "models:/<script>alert(1)</script><img src=x onerror=\"document.title='run'\">/1"
    write(subject, page, figures())
    done = _browse(page, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in done.stderr
    parsed = Page(done.stdout)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert len(parsed.named("img")) == 3
    assert "<script>alert(1)</script>" in parsed.headings[0][1]
    assert HOSTILE[:25] in parsed.text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_nothing_is_wider_than_a_phone(tmp_path: Path):
    """A script that the test adds measures the page at 360 px; the page's own policy would forbid it."""
    text = render(hostile(), "html", figures=figures())
    text = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", text)
    probe = "<script>document.title = document.documentElement.scrollWidth + '/' + window.innerWidth</script></body>"
    page = tmp_path / "report.html"
    page.write_text(text.replace("</body>", probe), encoding="utf-8", errors="backslashreplace")
    done = _browse(page, tmp_path / "profile", "--dump-dom", "--window-size=360,800")
    title = re.search(r"<title>(\d+)/(\d+)</title>", done.stdout)
    assert title
    assert int(title[1]) <= int(title[2]) <= 500  # some builds have a smallest window of 500 px


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_one_points_at_an_outlier_and_sees_its_image(tmp_path: Path):
    """With the page's own policy, by mouse and by keyboard; nothing is logged, and no image is refused."""
    from playwright.sync_api import sync_playwright

    page_file = tmp_path / "report.html"
    write(report(), page_file, (*figures(), pointable_figure()[0]))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 800})
        logged: list[str] = []
        page.on("console", lambda message: logged.append(message.text))
        page.goto(page_file.as_uri())
        points = page.locator(".point")
        assert points.count() == 32
        seen = [points.nth(number).locator(".thumb") for number in (0, 1)]
        assert not any(thumb.is_visible() for thumb in seen)
        points.first.focus()
        assert [thumb.is_visible() for thumb in seen] == [True, False]
        page.keyboard.press("Tab")
        assert [thumb.is_visible() for thumb in seen] == [False, True]
        points.first.locator("circle").hover()
        assert [thumb.is_visible() for thumb in seen] == [True, False]
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        browser.close()
    assert logged == []


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width"), [("pass", 1000), ("fail", 1000), ("inconclusive", 500), ("hostile", 500)])
def test_in_a_browser_axe_finds_nothing(tmp_path: Path, name: str, width: int, scheme: str):
    """All rules of axe-core: WCAG 2 A and AA, and best practices. The page's own policy would forbid the script."""
    subject = hostile() if name == "hostile" else report(Verdict(name))
    text = render(subject, "html", figures=(*figures(), pointable_figure()[0]))
    text = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", text)
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    probe = """axe.run().then(found => {
      const result = document.createElement("pre");
      result.id = "axe";
      result.textContent = JSON.stringify({
        dark: matchMedia("(prefers-color-scheme: dark)").matches,
        passed: found.passes.map(rule => rule.id),
        open: [...found.violations, ...found.incomplete].map(
          rule => [rule.id, rule.nodes.map(node => [node.target, node.any.map(check => check.message)])]),
      });
      document.body.append(result);
    });"""
    page = tmp_path / "report.html"
    text = text.replace("</body>", f"<script>{axe}</script><script>{probe}</script></body>")
    page.write_text(text, encoding="utf-8", errors="backslashreplace")
    options = ["--dump-dom", f"--window-size={width},900", "--virtual-time-budget=10000"]
    if scheme == "dark":
        options.append("--blink-settings=preferredColorScheme=0")
    done = _browse(page, tmp_path / "profile", *options)
    assert "CONSOLE" not in done.stderr
    found = re.search(r'<pre id="axe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    result = json.loads(html.unescape(found[1]))
    assert result["dark"] == (scheme == "dark")
    assert {"color-contrast", "heading-order", "image-alt", "landmark-one-main", "region"} <= set(result["passed"])
    assert result["open"] == []
