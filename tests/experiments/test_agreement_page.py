"""Online rules beside BPTT, as the page of learning online shows them."""

from experiments import agreement
from experiments.agreement import Sizes, agreements, main, table

SIZES = Sizes(units=3, steps=4, batch=2, pieces=2, updates=1, draws=2)


def test_the_page_has_table_and_figures(tmp_path, monkeypatch, capsys):
    """A window of all steps is exact, one of a single step is not, on either params."""
    monkeypatch.setattr(agreement, "RULES", {f"window {k}": {"rule": "tbptt", "window": k} for k in (1, 4)})
    found = agreements(SIZES)
    rows = [line.strip("| ").split(" | ") for line in table(found, SIZES).splitlines() if line.startswith("| window")]
    assert [row[:2] for row in rows] == [[f"window {k}", when] for k in (1, 4) for when in ("fresh", "after 1 updates")]
    assert [row[2:] for row in rows[2:]] == [["1.000", "1.000", "0.000", "–"]] * 2
    assert all(float(row[4]) > 0.01 for row in rows[:2]) and rows[0][2:] != rows[1][2:]
    page = tmp_path / "page.md"
    page.write_text("<!-- agreement:begin -->\n<!-- agreement:end -->\n")
    monkeypatch.setattr(agreement, "agreements", lambda sizes: found)
    assert main(["--write", str(page)], SIZES) == 0
    assert table(found, SIZES) in page.read_text()
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "agreement_fresh.png",
        "agreement_trained.png",
    ]
    page.write_text("nothing")
    assert main(["--write", str(page)], SIZES) != 0 and "agreement:begin" in capsys.readouterr().err
