"""Markdown tables, and what commands write into pages."""

import re
from pathlib import Path

import pytest

from experiments import markdown
from experiments.exits import said

ROOT = Path(__file__).parents[2]
PAGES = [path for path in sorted((ROOT / "docs/results").glob("*.md")) if path.stem != "index"]
PAGE = """# Title

<!-- error:begin, by `a command` -->
old

lines
<!-- error:end -->

<!-- other:begin -->
<!-- other:end -->
"""


def test_table():
    rows = [("cell", "options", "error"), ("gru", "–", "0.1"), ("lstm", "reset", "0.2")]
    assert markdown.table(rows).splitlines()[:2] == ["| cell | options | error |", "| --- | ---: | ---: |"]
    assert markdown.table(rows, left=2) == (
        "| cell | options | error |\n| --- | --- | ---: |\n| gru | – | 0.1 |\n| lstm | reset | 0.2 |"
    )


def test_text_between_markers_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    markdown.write_between_markers(page, "error", "new ± 1\n")
    assert page.read_text() == PAGE.replace("old\n\nlines", "new ± 1")
    markdown.write_between_markers(page, "other", "first")
    assert page.read_text().endswith("<!-- other:begin -->\nfirst\n<!-- other:end -->\n")
    before = page.read_text()
    markdown.write_between_markers(page, "error", "new ± 1")
    assert page.read_text() == before


def test_parts_that_a_page_has_are_written(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert markdown.parts_of(page, ["elsewhere", "other"]) == ["other"]
    markdown.write_parts(page, {"elsewhere": "nowhere", "error": "E"})
    assert "nowhere" not in page.read_text() and "-->\nE\n<!-- error:end -->" in page.read_text()


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ("nothing", "0 and 0"),
        ("<!-- error:begin -->\n", "1 and 0"),
        ("<!-- error:end -->\n<!-- error:begin -->\n", "1 and 1"),
        (PAGE + PAGE, "2 and 2"),
        (PAGE.replace("error:", "errors:"), "0 and 0"),
    ],
)
def test_missing_markers_are_named(tmp_path, text, came):
    page = tmp_path / "page.md"
    page.write_text(text)
    expected = re.escape(f"{page}: expected the lines <!-- error:begin --> and <!-- error:end -->") + f".*, got {came} "
    with pytest.raises(markdown.MarkerError, match=expected):
        markdown.write_between_markers(page, "error", "new")
    with pytest.raises(markdown.MarkerError, match=expected):
        markdown.write_parts(page, {"error": "new"})
    assert page.read_text() == text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_markers_of_the_results_are_pairs(path):
    begun = re.findall(r"^<!-- ([\w-]+):begin", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert markdown.parts_of(path, begun) == begun


def test_what_is_said_of_pages_and_files(capsys):
    errors = [markdown.MarkerError("no markers"), FileNotFoundError(2, "No such file", "page.md"), OSError("disk full")]
    assert [said(error) for error in errors] == [2, 1, 1]
    assert capsys.readouterr().err == "--write: no markers\npage.md: No such file\ndisk full\n"
