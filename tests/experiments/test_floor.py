"""What a forward run consists of: the parts are those of the cells; a tiny run; the table by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from experiments.benchmarks import floor
from experiments.benchmarks.contestants import BEFORE
from experiments.benchmarks.problems import Problem
from experiments.benchmarks.report import DASH
from experiments.benchmarks.suites import Row
from tests.programs import loops, products_in_loops

B, T, I, H = SHAPE = (4, 6, 3, 8)


@pytest.mark.parametrize("name", floor.KINDS)
def test_the_nonlinearities_are_those_of_the_cell(name):
    """The cell with the gates as its inputs, and h added to each of them."""
    kind = floor.KINDS[name]
    traced = floor.nonlinearities(kind, Problem(kind.cell, *SHAPE), "forward")
    a, carry = traced.args
    gates = a.shape[1] // H
    cell = {
        "lstm": jr.lstm(gates * H, H, forget_bias=0.0),
        "gru after": jr.gru(gates * H, H, reset="after"),
        "gru": jr.gru(gates * H, H),
    }[name]
    params = cell.init(jax.random.key(0))._replace(W_xh=jnp.eye(gates * H), W_hh=jnp.tile(jnp.eye(H), gates))
    assert not params.b.any()
    end, _ = jr.scan(cell).apply(params, jnp.tile(a, (T, 1, 1)))
    for got, want in zip(traced.function(a, carry), jax.tree.leaves(end), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert products_in_loops(traced.function, *traced.args) == [0]


@pytest.mark.parametrize("name", floor.KINDS)
def test_the_products_are_those_of_the_cell(name):
    kind = floor.KINDS[name]
    traced = floor.products(kind, Problem(kind.cell, *SHAPE), "forward")
    model = {"lstm": jr.lstm(I, H), "gru after": jr.gru(I, H, reset="after"), "gru": jr.gru(I, H)}[name]
    params = model.init(jax.random.key(0))

    def of_the_cell(params, xs):
        return jr.scan(model, plan="plain").apply(params, xs)

    found = []
    for function, args in ((traced.function, traced.args), (of_the_cell, (params, traced.args[0]))):
        (loop,) = loops(function, *args)
        shapes = [[v.aval.shape for v in eqn.invars] for eqn in loop.eqns if eqn.primitive.name == "dot_general"]
        found.append(sorted(shapes))
    assert found[0] == found[1] and len(found[0]) == 1 + len(kind.pieces)


def test_a_run_writes_its_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- floor:begin, by the command -->\nold\n<!-- floor:end -->\nafter\n", encoding="utf-8")
    asked = ["--cells", "lstm", "--shapes", "4,6,3,8", "--seconds", "0.001", "--write", str(page)]
    assert floor.main(asked) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- floor:begin") and text.endswith("<!-- floor:end -->\nafter\n")
    (row,) = [line for line in text.splitlines() if line.startswith("| 4,6,3,8 |")]
    assert DASH not in row.rsplit("|", 2)[0] and "old" not in text
    assert capsys.readouterr().err.startswith("lstm 4,6,3,8\n")


def test_a_run_that_is_stopped_tells_what_it_measured(monkeypatch, capsys):
    monkeypatch.setattr(floor, "OtherWork", lambda: Others())

    def measure(group):
        if "gru" in group.title:
            raise KeyboardInterrupt
        return [group.entries[0].row._replace(seconds=(0.002,))]

    monkeypatch.setattr(floor, "measure", measure)
    text = floor.run(["lstm", "gru"], [SHAPE], floor.BUDGET)
    assert "\n\n**lstm, ms**\n\n" in text and f"| 4,6,3,8 | 2 | {DASH} |" in text and "gru" not in text
    assert capsys.readouterr().err == (
        "lstm 4,6,3,8\ngru 4,6,3,8\nstopped\nWARNING: other processes kept 0.3 cores busy: not to be trusted\n"
    )


class Others:
    def cores(self):
        return 0.26


@pytest.mark.parametrize(
    "asked, said",
    [
        (["--cells", "lstm,gru2"], "--cells: 'gru2' is none of lstm, gru after, gru\n"),
        (["--shapes", "1,2"], "--shapes: expected B,T,I,H such as 32,128,128,128, got '1,2'\n"),
    ],
)
def test_what_is_asked_wrongly_is_said(asked, said, capsys):
    assert floor.main(asked) == 2 and capsys.readouterr().err == said


def test_the_table_has_medians_their_sum_and_the_best_peer():
    times = {"floor products": 5, "floor nonlinearities": 2, "floor loop": 1, BEFORE: 8, "haiku": 9.5, "keras": 10}
    rows = [Row("floor", "forward", "gru", SHAPE, "", 1, who, (ms / 1e3,)) for who, ms in times.items()]
    rows.append(rows[0]._replace(contestant="torch"))
    figures = ("5", "2", "1", "8", "8 ± 0", "9.5 ± 0 (haiku)", "0.84", "0.84", "5 ± 0")
    assert floor.line(rows) == ("4,6,3,8", *figures)
    slower = rows[3]._replace(seconds=(9e-3, 9e-3, 11e-3, 11e-3))
    assert floor.line([*rows[:3], slower, *rows[4:]])[5:8] == ("10 ± 1", "9.5 ± 0 (haiku)", "**1.05**")
