"""The page of a run: self-contained, accessible, escaped; several runs side by side; what cannot be shown is said."""

import functools
import html.parser
import http.server
import itertools
import json
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest

from experiments.reports import figures, folder, page, samples, tables
from experiments.runner.command import main
from tests.experiments.folders import HOSTILE, a_run

VOID = {"meta", "img", "br", "hr", "link", "input", "base", "source"}


class Page(html.parser.HTMLParser):
    """The elements of a page, each with its attributes and its place in the tree, and the text of some."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == [], "elements that are not closed"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), len(self.elements)))
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), len(self.elements)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> within {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(([tag for tag, _ in self.open], data))

    def of(self, *tags):
        return [(tag, attributes) for tag, attributes, _ in self.elements if tag in tags]

    def text_of(self, *tags):
        return " ".join(data for path, data in self.texts if set(tags) & set(path))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    first = a_run(out / "reverse-001")
    a_run(out / "reverse-002", models=("luong", "bahdanau"), rate=1e-2, like=first)
    a_run(out / "reverse-003", finished=False)
    return [out / f"reverse-00{number}" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def pages(runs):
    """Of a run, of one that has not finished, and of all side by side."""
    return [page.write(of)[0] for of in ([runs[0]], [runs[2]], runs)]


def test_a_page_fetches_nothing_runs_nothing_and_can_be_read_aloud(pages):
    for path in pages:
        read = Page(path)
        assert not read.of("script", "link", "iframe", "object", "embed", "base", "form")
        for tag, attributes in [(tag, attributes) for tag, attributes, _ in read.elements]:
            assert not [name for name in attributes if name.startswith("on")]
            for name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
                assert re.match(r"#|data:image/png;base64,", attributes.get(name, "#")), (tag, name)
            assert not re.search(r"url\((?!#)", attributes.get("style", ""))
        css = read.text_of("style")
        assert "url(" not in css and "@import" not in css and "prefers-color-scheme: dark" in css
        (policy,) = [a["content"] for _, a in read.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
        assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

        ids = [attributes["id"] for _, attributes, _ in read.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        named = [a.get("aria-labelledby", "") for _, a, _ in read.elements]
        referred = [a["href"][1:] for _, a, _ in read.elements if a.get("href", "").startswith("#")]
        assert {name for names in named for name in names.split()} | set(referred) <= set(ids)
        for tag, attributes in read.of("svg", "img"):
            assert attributes.get("alt") or (
                attributes["role"] == "img" and (attributes.get("aria-label") or attributes.get("aria-labelledby"))
            ), tag
        levels = [int(tag[1]) for tag, _ in read.of("h1", "h2", "h3", "h4", "h5", "h6")]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert len(read.of("table")) == len(read.of("caption")) > 0
        assert all(a.get("scope") in ("col", "row") for _, a in read.of("th"))
        assert read.of("html")[0][1]["lang"] == "en" and len(read.of("main")) == 1


def test_what_comes_from_configs_and_data_is_escaped(pages):
    text = pages[0].read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;alert(" in text
    read = Page(pages[0])
    for places in (["th"], ["td"], ["p"], ["figcaption"], ["text"], ["desc"]):  # model, config, note, sample, figure
        assert HOSTILE in read.text_of(*places).replace("\n", ""), places


def test_the_table_has_the_mean_of_the_seeds_and_its_interval(runs, pages):
    (model, _) = json.loads((runs[0] / "summary.json").read_text())["models"]
    each = np.array(model["loss"]["each"])
    half = 4.302653 * each.std(ddof=1) / 3**0.5  # Student's t for two degrees of freedom at 97.5 %
    cell = f"{each.mean():.3f} ± {each.std(ddof=1):.3f} [{each.mean() - half:.3f}, {each.mean() + half:.3f}]"
    assert cell in re.sub(r"\s+", " ", Page(pages[0]).text_of("td"))
    assert tables.interval(np.array([1.0])) is None and tables.interval(np.array([1.0, np.nan])) is None
    strip = tables._strips([np.array([0.0, 1.0]), np.array([0.4, 0.6])], "%")[1]
    # 95 %: 0.5 ± 12.7062 · 0.1, beyond the scale from 0 to 1, whose ends lie at 4 and 96 per cent of the width.
    assert strip.points == [40.8, 59.2] and (strip.mean, strip.low, strip.high) == (50.0, 4.0, 96.0)
    groups = samples.Groups(
        title="t", axis="a", groups=("x", "y"), by_model={"m": ((0.0, 0.5), (0.2, None))}, form=".2f"
    )
    (row,) = tables.of_groups(groups).rows
    assert [(cell.text, cell.below, cell.shade) for cell in row[1:]] == [("0.10", "0.00 – 0.20", 0), ("–", "", 0)]


def test_models_and_runs_are_compared_seed_by_seed(runs, pages):
    luong, other = (
        np.array(model["loss"]["each"]) for model in json.loads((runs[0] / "summary.json").read_text())["models"]
    )
    differences = other - luong
    half = 4.302653 * differences.std(ddof=1) / 3**0.5
    low, mean, high = (f"{differences.mean() + end:+.3f}" for end in (-half, 0, half))
    read = Page(pages[0])
    assert f"{mean} [{low}, {high}]" in re.sub(r"\s+", " ", read.text_of("td"))
    assert f"{HOSTILE} less luong" in read.text_of("th") and "Paired differences between models" in read.text_of(
        "caption"
    )
    together = Page(pages[2])
    assert "reverse-002 less reverse-001" in together.text_of("th")  # luong, which is the same in both
    assert "0.000 [0.000, 0.000]" in re.sub(r"\s+", " ", together.text_of("td"))


def test_samples_figures_and_how_to_run_it_again_are_there(runs, pages):
    read = Page(pages[0])
    headings = read.text_of("h2", "h3")
    for title in ("Results", "Learning curves", "Where it looks", "Images", "Rows", "Configuration", "Environment"):
        assert title in headings
    assert "1: 12 (" not in read.text_of("desc") and "12: 12 (" in read.text_of("desc")  # where the most weight is
    assert f"python -m experiments run {runs[0] / 'config.toml'}" in read.text_of("code")
    assert "train.learning_rate" in read.text_of("th") and "Reversed strings" in read.text_of("p")
    assert {a.get("aria-label") for _, a in read.of("span")} >= {"right", "wrong"}
    (curves,) = re.findall(r"<desc[^>]*run1-curves-desc.*?</desc>", pages[0].read_text())
    assert "luong ends at 0.08" in curves and "logarithmic" in curves


def test_several_runs_stand_side_by_side(runs, pages, capsys):
    read = Page(pages[2])
    assert pages[2] == runs[0].parent / "report.html"
    rows = re.sub(r"\s+", " ", read.text_of("table"))
    assert "train.learning_rate 0.003 0.01 0.003" in rows and "train.steps 40 40" not in rows
    assert "reverse-002 bahdanau 8" in rows and "reverse-003 luong" not in rows  # which has no summary yet
    assert "reverse-003: luong ends at" in read.text_of("desc")  # but curves
    output = runs[0].parent / "compared.html"
    assert main(["report", str(runs[1]), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"report: {output}\n" and "Reverse" in Page(output).text_of("h1")


def test_a_run_that_has_not_finished_is_shown_as_far_as_it_came(runs, capsys):
    assert main(["report", str(runs[2])]) == 0
    said, errors = capsys.readouterr()
    assert said == f"report: {runs[2] / 'report.html'}\n"
    assert errors == (
        f"{runs[2]}: this run has not finished, step 20 of 40 was the last recorded; go on with: "
        f"python -m experiments run --resume {runs[2]}\n"
    )
    read = Page(runs[2] / "report.html")
    assert "has not finished" in read.text_of("p") and "loss" in read.text_of("text")


def test_what_cannot_be_shown_is_said_in_one_line(runs, tmp_path, capsys):
    def said(directory, status):
        capsys.readouterr()
        assert main(["report", str(directory)]) == status
        (line,) = capsys.readouterr().err.splitlines()
        return line

    nowhere, empty, broken = tmp_path / "nowhere", tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    assert said(nowhere, 2) == f"{nowhere}: no such folder"
    assert said(empty, 2) == f"{empty}: not a run directory: it has no config.toml"
    shutil.copytree(runs[1], broken)
    (broken / "samples.json").write_text('[{"kind": "map", "title": "t", "values": [[1, 2], [3]]}]')
    assert "samples.json: not what an experiment hands over: 0.map: " in said(broken, 0)
    (broken / "samples.json").unlink()
    (broken / "rows.svg").write_text("<svg")
    assert f"{broken / 'rows.svg'}: not a drawing: " in said(broken, 0)
    assert Page(broken / "report.html").of("img")  # the PNG in its place
    summary = (broken / "summary.json").read_text()
    for text, told in (
        (summary[:50], "not readable: "),
        ("[]", "not readable: expected an object"),
        (summary.replace("1234", '"many"'), "not what a run writes: "),
    ):
        (broken / "summary.json").write_text(text)
        assert said(broken, 1).startswith(f"{broken / 'summary.json'}: {told}")
    (broken / "metrics.jsonl").write_text("no row\n")
    (broken / "summary.json").write_text(summary)
    assert f"{broken / 'metrics.jsonl'}, line 1: expected a row in JSON" in said(broken, 1)
    (broken / "metrics.jsonl").write_text('{"model": "luong", "seed": [1], "loss": 2}\n')
    assert said(broken, 1).startswith(f"{broken / 'metrics.jsonl'}: expected rows with a whole number as their step")
    (broken / "config.toml").write_text("steps = 3\n")
    assert said(broken, 2) == f"{broken / 'config.toml'}: expected the config of a run, with an experiment, got none"
    assert said(runs[0] / "table.md" / "x", 2).endswith(": no such folder")


def test_a_drawing_keeps_nothing_but_what_is_drawn():
    text = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 40 30" '
        'onload="alert(1)"><script>alert(2)</script><style>* {fill: red}</style><foreignObject/><a href="x"/>'
        '<g id="a" style="fill: #E69F00; font-family: Arial; stroke: url(https://x.y/z)">'
        '<use xlink:href="#a" clip-path="url(#a)"/><use href="https://x.y/z"/><image href="data:image/svg+xml,x"/>'
        '<text style="font: bold 10px Arial; fill: #000000" onclick="f()">&lt;b&gt;</text></g></svg>'
    )
    assert str(figures.inlined(text, "p")) == (
        '<svg viewBox="0 0 40 30" role="img" aria-labelledby="p-title p-desc" class="figure" '
        'style="max-width: 53px; min-width: 32px"><title id="p-title">Figure</title><desc id="p-desc" />'
        '<g id="p-a"><use href="#p-a" clip-path="url(#p-a)" /><use /><image />'
        '<text style="font-size: 10px; font-weight: bold; fill: var(--ink)">&lt;b&gt;</text></g></svg>'
    )
    for wrong in ("<svg", "<html/>", '<!DOCTYPE svg [<!ENTITY a "b">]><svg xmlns="http://www.w3.org/2000/svg"/>'):
        with pytest.raises(ValueError):
            figures.inlined(wrong, "p")


def test_a_run_of_an_experiment_without_models_is_shown_by_its_own_table(tmp_path):
    (tmp_path / "config.toml").write_text('experiment = "mackey_glass"\n')
    (tmp_path / "table.md").write_text(
        "| units | error |\n| --- | ---: |\n| 100 | 1e-3 |\n\nA note.\n\nAs run on a day.\n"
    )
    path, faults = page.write([tmp_path])
    read = Page(path)
    assert not faults and re.sub(r"\s+", " ", read.text_of("tbody")).startswith(" 100 1e-3")
    assert "A note." in read.text_of("p") and "As run on" not in read.text_of("p")
    assert folder.seconds_of({"columns": [{"name": "x"}], "models": [{"seconds": 1}, {"seconds": 2.5}]}) == 3.5


def seen_by_a_browser(folder, files, tmp_path):
    """Of each page, narrow and wide: its overflow, what it fetches, its sections; and all that was asked for."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form, *arguments):
            asked.append(self.path)

    # A page around them, whose script may look into them: the policy of the pages themselves allows none.
    frames = [f'<iframe src="/{file}" width="{size}" height="900"></iframe>' for file in files for size in (320, 1400)]
    (folder / "around.html").write_text(f"{''.join(frames)}<pre></pre><script>{MEASURE}</script>")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--virtual-time-budget=5000", "--dump-dom"]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            command = [chromium, *options, f"http://127.0.0.1:{server.server_port}/around.html"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        finally:
            server.shutdown()
    (found,) = re.findall(r"<pre>(.*?)</pre>", done.stdout)
    return json.loads(found), set(asked)


def test_a_browser_fetches_nothing_and_nothing_overflows(runs, pages, tmp_path):
    folder = runs[0].parent
    files = [str(path.relative_to(folder)) for path in pages]
    text = pages[0].read_text(encoding="utf-8")  # how it would be told: a table that does not scroll, and an image
    told = text.replace("overflow-x: auto", "").replace("img-src data:", "img-src *")
    (folder / "told.html").write_text(told.replace('<main id="main">', '<main id="main"><img src="/seen.png" alt="">'))
    seen, asked = seen_by_a_browser(folder, [*files, "told.html"], tmp_path)
    *ours, (overflow, fetched, _), _ = seen
    assert overflow > 0 and fetched == 1 and "/seen.png" in asked
    known = {f"/{file}" for file in [*files, "around.html", "told.html", "seen.png", "favicon.ico"]}
    assert len(ours) == 2 * len(files) and asked <= known
    for overflow, fetched, sections in ours:
        assert overflow <= 0 and fetched == 0 and sections > 2


MEASURE = """
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement
    const fetched = frame.contentWindow.performance.getEntriesByType("resource")
    return [
      root.scrollWidth - root.clientWidth,
      fetched.filter(entry => !entry.name.startsWith("data:")).length,
      page.querySelectorAll("section").length,
    ]
  })
  document.querySelector("pre").textContent = JSON.stringify(seen)
})
"""
