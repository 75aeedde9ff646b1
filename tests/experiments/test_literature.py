"""Our figures beside the literature's: read from the pages, and the page is what the command writes."""

import pytest

from experiments import literature, markdown
from experiments.literature import Row
from tests.documents import ROOT

PAGE = """<!-- task:begin -->
| model | error | interval |
| --- | ---: | ---: |
| gru | 1.0 ± 0.1 | 0.9 to 1.1 |
| lstm | 2.0 | 1.9 to 2.1 |

Intervals: gru 0.95 … 1.05; lstm 1.9 … 2.1.
<!-- task:end -->
"""
ROW = Row("a task", "task", "gru", "error", "interval", "3 (A 2000)", "the split")


def test_the_page_is_what_the_command_writes():
    page = ROOT / "docs/results/literature.md"
    text = markdown.between_markers(page, "literature")
    assert text == literature.table(), "python -m experiments.literature --write docs/results/literature.md"


def test_figures_are_read_from_their_pages(tmp_path, capsys):
    (tmp_path / "task.md").write_text(PAGE)
    rows = [ROW, ROW._replace(model="lstm", interval=r"lstm ([\d.]+ … [\d.]+\d)"), ROW._replace(interval="")]
    assert literature.table(rows, tmp_path).splitlines()[2:] == [
        "| a task | [gru](task.md) | 1.0 ± 0.1 | 0.9 to 1.1 | 3 (A 2000) | the split |",
        "| a task | [lstm](task.md) | 2.0 | 1.9 … 2.1 | 3 (A 2000) | the split |",
        "| a task | [gru](task.md) | 1.0 ± 0.1 | – | 3 (A 2000) | the split |",
    ]
    for wrong, told in (
        ({"model": "elman"}, "the row 'elman'"),
        ({"column": "accuracy"}, "the column 'accuracy'"),
        ({"interval": "nowhere (.)"}, r"'nowhere \(.\)'"),
        ({"part": "other"}, "<!-- other:begin -->"),
    ):
        with pytest.raises(markdown.MarkerError, match=f"task.md: expected .*{told}"):
            literature.table([ROW._replace(**wrong)], tmp_path)
    assert literature.main(["--write", str(tmp_path / "none.md")]) == 1
    assert "none.md: No such file" in capsys.readouterr().err
