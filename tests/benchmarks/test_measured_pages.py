"""The pages and figures of a measured report: what they say, and where."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from kdedge.benchmarks.report import figures
from kdedge.benchmarks.report.pages import print_summary, render_html, render_markdown


class Page(HTMLParser):
    """Checks that tags are balanced and collects addresses and text."""

    VOID = frozenset({"meta", "img", "br", "source", "link", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "srcset", "href", "data"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_html_is_one_file_with_the_verdict_first(finished: tuple[dict[str, Any], Path]) -> None:
    report, out = finished
    html = (out / "report.html").read_text()
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert len(page.addresses) == 12
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    without_images = re.sub(r"data:image/png;base64,[^\"]*", "", html)
    assert not re.search(r"https?:|//\w|@import|url\(|<script", without_images)
    body = html[html.index("<body>") :]
    assert body.index("Undecided") < body.index(report["gate"]["reason"][:20]) < body.index("<h2>")
    # Class names are the user's and must not become markup.
    assert "&lt;b&gt;frog&lt;/b&gt;" in body
    assert "<b>frog" not in body
    for word in ("prefers-color-scheme: dark", "@media print", 'name="viewport"'):
        assert word in html


def test_the_first_lines_name_model_data_and_classes(
    finished: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report, out = finished
    subject = "lite on made-up, 4 classes: cat, dog | wolf, <b>frog</b>, ship"
    assert (out / "report.md").read_text().splitlines()[2] == subject
    html = (out / "report.html").read_text()
    assert html.index("lite on made-up, 4 classes: cat") < html.index("<h2>")
    print_summary(report)
    assert capsys.readouterr().out.splitlines()[1] == subject
    classes = [{**report["per_class"][0], "class": f"c{number}"} for number in range(6)]
    assert "6 classes: c0, c1, c2, c3 and 2 more" in render_markdown({**report, "per_class": classes}, [])


def test_markdown_tables_are_whole(finished: tuple[dict[str, Any], Path]) -> None:
    report, out = finished
    text = (out / "report.md").read_text()
    assert text.startswith("# Undecided")
    assert report["gate"]["reason"] in text
    assert "dog \\| wolf" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert all((out / name).is_file() for name in re.findall(r"\]\((.+?)\)", text))


def test_summary_fits_80_columns(finished: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]) -> None:
    report, _ = finished
    print_summary(report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Undecided")
    assert max(map(len, lines)) <= 80
    assert any("INT8 top-1" in line for line in lines)
    assert any("CUDA not measured" in line for line in lines) == bool(report["unavailable"])


def test_accuracy_stands_beside_the_constant_answer(finished: tuple[dict[str, Any], Path]) -> None:
    report, out = finished
    accuracy = report["accuracy"]
    most = max(report["per_class"], key=lambda row: row["n"])
    assert (accuracy["majority_class"], accuracy["majority_pct"]) == (most["class"], round(100 * most["n"] / 120, 4))
    recalls = [row["int8_top1_pct"] for row in report["per_class"]]
    assert accuracy["balanced_pct"] == pytest.approx(sum(recalls) / 4, abs=1e-3)
    text = (out / "report.md").read_text()
    assert text.index("| INT8 top-1 |") < text.index("| always `") < text.index("| FP32 top-1 |")


def test_the_name_of_the_most_frequent_class_is_shown_as_it_is(
    finished: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report = finished[0]
    for name in ("[unknown]", "[/x]", ":cat: | dog"):
        named = {**report, "accuracy": {**report["accuracy"], "majority_class": name}}
        print_summary(named)
        assert f"always `{name}` " in capsys.readouterr().out
        assert f"\n| always `{name.replace('|', chr(92) + '|')}` | " in render_markdown(named, [])


def test_a_class_that_is_hardly_ever_recognised_is_named_on_top(
    finished: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row} for row in finished[0]["per_class"]]
    assert "Hardly ever recognised" not in render_markdown(finished[0], [])
    rows[1] |= {"n": 17, "int8_top1_pct": 5.8824}
    rows[3] |= {"n": 13, "int8_top1_pct": 0.0}
    report = {**finished[0], "per_class": rows}
    print_summary(report)
    for text in (capsys.readouterr().out, render_markdown(report, []), render_html(report, [])):
        head = " ".join(text.split("INT8 top-1")[0].split())
        assert "Hardly ever recognised: ship (0 of 13), dog | wolf (1 of 17)" in head


def test_a_gate_that_failed_for_another_reason_than_a_loss_says_so(finished: tuple[dict[str, Any], Path]) -> None:
    for cause, headline in (
        ("learned", "Failed: the model has learned nothing"), ("gain", "Failed: INT8 does not follow FP32"),
    ):  # fmt: skip
        gate = {**finished[0]["gate"], "verdict": "failed", "passed": False, "cause": cause}
        assert render_markdown({**finished[0], "gate": gate}, []).startswith(f"# {headline}\n")


@pytest.mark.parametrize(
    ("noisy", "title"),
    [((), ""), ((1,), "red numbers are noisy: do not quote"), ((0, 1, 2, 3), "noisy: do not quote")],
)
def test_a_noisy_cell_does_not_mark_the_whole_figure(
    finished: tuple[dict[str, Any], Path], noisy: tuple[int, ...], title: str
) -> None:
    verdicts = ["noisy: do not quote" if index in noisy else "steady" for index in range(4)]
    rows = [
        {**row, "trust": {"verdict": verdict}} for row, verdict in zip(finished[0]["latency"], verdicts, strict=True)
    ]
    axes = Figure().subplots()
    figures._latency(axes, rows, "image")
    assert axes.get_title(loc="left") == title
    # Numbers over the bars are drawn model by model.
    drawn = sorted(range(4), key=lambda index: rows[index]["model"] != rows[0]["model"])
    assert {index for index, text in zip(drawn, axes.texts, strict=True) if text.get_color() != "black"} == set(noisy)


@pytest.mark.parametrize(("verdict", "headline"), [("passed", "Passed: "), ("failed", "Failed: ")])
def test_other_verdicts(finished: tuple[dict[str, Any], Path], verdict: str, headline: str) -> None:
    report = {**finished[0], "gate": {**finished[0]["gate"], "verdict": verdict, "passed": verdict == "passed"}}
    buffer = io.StringIO()
    print_summary(report, Console(file=buffer, width=80))
    assert buffer.getvalue().startswith(headline)
    assert f"<h1>{headline}" in render_html(report, [])
    assert render_markdown(report, []).startswith(f"# {headline}")


@pytest.mark.filterwarnings("error")
def test_a_class_name_that_the_font_lacks_is_drawn_as_its_number(
    finished: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = finished[0]["per_class"][0]
    classes = [{**row, "class": "Äpfel"}, {**row, "class": "梨", "n": 0}, {**row, "class": "りんご"}]
    drawn: list[str] = []
    paint = figures._accuracies

    def spy(axes: Any, rows: Any, plural: str) -> None:
        paint(axes, rows, plural)
        drawn[:] = [label.get_text() for label in axes.get_yticklabels()]

    monkeypatch.setattr(figures, "_accuracies", spy)
    report = {"latency": [], "per_class": classes}
    assert [figure.name for figure in figures.draw_figures(report, tmp_path)] == ["per_class"]
    assert drawn == ["Äpfel", "class 2"]
