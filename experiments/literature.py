"""Our figures beside those of the literature: ``python -m experiments.literature --write docs/results/literature.md``.

Ours are read from the pages of the results, where the commands that measured them wrote them between markers; what is
quoted, and what differs, stands here. A default test compares the page with what would be written.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import markdown
from experiments.exits import said
from experiments.markdown import MarkerError

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PART = "literature"


class Row(NamedTuple):
    """One figure of ours, and what the literature has."""

    task: str
    page: str  # in docs/results, without its ending
    model: str  # the first cell of its row
    column: str  # the title of its column
    interval: str  # the title of another column, or a pattern with a group in what stands below the table; "": none
    quoted: str
    differs: str
    part: str = ""  # the name of the markers, where it is not the page's


ROWS = (
    Row(
        "Japanese vowels, test accuracy",
        "vowels",
        "gru",
        "test accuracy",
        r"gru ([\d.]+ … [\d.]+ %)",
        "MLSTM-FCN 97.6 % (Karim et al. 2019); transformers 98 to 99 %",
        "the split as published; no convolutions, nothing reads padding; an interval of seeds, on one test split",
    ),
    Row(
        "Japanese vowels, test accuracy",
        "vowels",
        "lstm",
        "test accuracy",
        r"lstm ([\d.]+ … [\d.]+ %)",
        "as above",
        "as above",
    ),
    Row(
        "Mackey-Glass, τ = 17: NRMSE after 84 steps alone, median",
        "mackey_glass",
        "1,000",
        "NRMSE, 84 steps alone: median",
        "interval",
        "10^-4.2 = 6.3e-05; 10^-5.1 = 7.9e-06 with the refined version (Jaeger & Haas 2004)",
        "1,000 units in both; here the signal is an input while the network listens, and there is no refinement",
    ),
    Row(
        "JSB chorales, independent notes: test NLL",
        "music",
        "gru-46",
        "test NLL",
        r"gru-46 test (\d+\.\d+ … \d+\.\d+)",
        "8.54 (Chung et al. 2014), 8.43 (Bai et al. 2018)",
        "the file and split of the literature; Adam with a cosine schedule, weight noise",
        part="music-jsb",
    ),
    Row(
        "JSB chorales, independent notes: test NLL",
        "music",
        "lstm-36",
        "test NLL",
        r"lstm-36 test (\d+\.\d+ … \d+\.\d+)",
        "8.67 (Chung et al. 2014), 8.45 (Bai et al. 2018)",
        "as above",
        part="music-jsb",
    ),
    Row(
        "JSB chorales, independent notes: test NLL",
        "music",
        "gru-200",
        "test NLL",
        r"gru-200 test (\d+\.\d+ … \d+\.\d+)",
        "8.10 (TCN, Bai et al. 2018)",
        "as above; a convolution over time beside a recurrence",
        part="music-jsb",
    ),
    Row(
        "JSB chorales, joint notes: test NLL",
        "music",
        "gru-nade",
        "test NLL",
        r"gru-nade test (\d+\.\d+ … \d+\.\d+)",
        "RNN-NADE 5.56, RNN-RBM 6.27 (Boulanger-Lewandowski et al. 2012)",
        "a GRU where theirs is a plain recurrence; Adam alone, no pretraining",
        part="music-jsb-joint",
    ),
    Row(
        "English letters to phonemes, test PER",
        "g2p",
        "attention",
        "test PER",
        "",
        "5.45 % (Yao & Zweig 2015)",
        "another split; half an epoch of training, small networks: a state, not a result",
    ),
    Row(
        "English letters to phonemes, test WER",
        "g2p",
        "ctc",
        "test WER",
        r"ctc ([\d.]+ … [\d.]+)",
        "25.8 % (CTC, Rao et al. 2015)",
        "as above",
    ),
)


def table(rows: Sequence[Row] = ROWS, results: Path = RESULTS) -> str:
    """All rows, in Markdown.

    Raises:
        MarkerError: a page, or a row or column of its table, is not there. OSError.
    """
    header = ("task", "model", "ours", "95 % interval", "the literature", "what differs")
    body = []
    for row in rows:
        ours, interval = found(row, results)
        body.append((row.task, f"[{row.model}]({row.page}.md)", ours, interval, row.quoted, row.differs))
    return markdown.table([header, *body], left=6)


def found(row: Row, results: Path) -> tuple[str, str]:
    """The figure as it stands on its page, and its interval."""
    page = results / f"{row.page}.md"
    text = markdown.between_markers(page, row.part or row.page)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    header, _, *body = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines] or [[], []]
    of_model = next((cells for cells in body if cells[0] == row.model), None)
    if of_model is None or row.column not in header:
        what = f"column {row.column!r}" if of_model else f"row {row.model!r}"
        raise MarkerError(
            f"{page}: expected a table with the {what} between the markers, got none; see ROWS in {__file__}"
        )
    interval = "–"
    if row.interval in header:
        interval = of_model[header.index(row.interval)]
    elif row.interval:
        match = re.search(row.interval, text)
        if match is None:
            raise MarkerError(
                f"{page}: expected {row.interval!r} between the markers, got none; see ROWS in {__file__}"
            )
        interval = match[1]
    return of_model[header.index(row.column)], interval


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or write it into a page. Exit status: 0, 1 (a file), 2 (what a page lacks)."""
    parser = argparse.ArgumentParser(prog="python -m experiments.literature", description="Our figures beside others'.")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="between <!-- literature:begin --> and :end there")
    arguments = parser.parse_args(argv)
    try:
        text = table()
        if arguments.write is None:
            print(text)
        else:
            markdown.write_between_markers(arguments.write, PART, text)
    except (MarkerError, OSError) as error:
        return said(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
