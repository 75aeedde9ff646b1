"""The benchmark of learning online: verdicts on made-up figures, and a tiny case the whole way."""

import jax
import numpy as np
import pytest

import jaxrnn as jr
from experiments.benchmarks import online, online_steps, report, targets
from experiments.benchmarks.measuring import measure
from experiments.benchmarks.online_steps import FLOOR, FORWARD, ONLINE, TEXTBOOK, Case, check_same, lines
from experiments.benchmarks.suites import Group, Row
from experiments.benchmarks.timing import Budget


def made_up(case, B, **seconds):
    shape = B, case.steps, *online_steps.sizes(case)
    return [
        Row("online", case.rule, case.name, shape, "", 1, who, tuple(case.steps * 1e-6 * s for s in times))
        for who, times in zip((FORWARD, ONLINE, TEXTBOOK, FLOOR), seconds.values(), strict=True)
    ]


def test_verdicts_are_of_the_rounds_ratios():
    gru, *_, diagonal, dense = online_steps.CASES
    rows = made_up(gru, 1, a=(10, 10, 30), b=(39, 42, 90), c=(84, 84, 90), d=(20, 20, 20))
    rows += made_up(dense, 16, a=(1, 1, 1), b=(30, 30, 30), c=(60, 60, 60), d=(10, 10, 10))
    rows += made_up(diagonal, 16, a=(10, 10, 10), b=(50, 50, 50), c=(60, 60, 60), d=(16, 16, 16))
    _, first, third, second = lines(rows, report.spread)
    assert third[-1] == "≤ 2 × forward: **missed**; a forward step and the floor alone are 2.6 ×"
    assert first[:3] == ("GRU-64", '"snap1"', "1") and first[3].startswith("10.0 ") and first[4].startswith("42.0 ")
    assert first[7:] == ("3.90", "0.50", "2.10", "≤ 4 × forward: met")  # of 3.9, 4.2 and 3.0 the median
    assert second[7:] == ("30.00", "0.50", "3.00", "≤ 2 × floor: **missed**")
    met = {line.target: (line.value, line.met) for line in targets.verdicts(rows)}
    assert met["GRU-64 by snap1 / forward step"] == (pytest.approx(4.2), False)  # of medians, as all targets are
    assert met["GRU-32 by rtrl / floor"] == (pytest.approx(3.0), False)


@pytest.mark.full
@pytest.mark.parametrize(("cell", "rule"), [(jr.gru(3, 4, reset="after"), "snap1"), (jr.elman(3, 6), "rtrl")])
def test_a_tiny_case_is_measured(cell, rule):
    case = Case("tiny", cell, rule, 2.0, FORWARD, steps=3)
    rows = measure(Group("tiny", online_steps.entries_of(case, 2), Budget(0.001, 1, 1, turn=0.001)))
    assert [row.contestant for row in rows] == [FORWARD, ONLINE, TEXTBOOK, FLOOR]
    assert all(row.median > 0 and not row.note for row in rows)
    entries, size = online_steps.kept(case)
    assert entries == (size if rule == "snap1" else 6 * size)


def test_contestants_with_other_gradients_are_told():
    seen = {}
    check_same(seen, ONLINE, ((None, {"W": np.ones(3)}), np.ones(2)))
    check_same(seen, TEXTBOOK, ((None, {"W": np.full(3, 1.0001)}), np.ones(2)))
    with pytest.raises(ValueError, match=r"textbook differs from what others found by 1.0e-02"):
        check_same(seen, TEXTBOOK, ((None, {"W": np.array([1, 1.01, 1])}), np.ones(2)))


@pytest.mark.full
def test_a_long_stream_in_little():
    found = online.memory(steps=40, block=10)
    assert found.steps == 40 and found.seconds > 0 and 0 < found.first <= found.most
    assert "40 steps of one stream" in online.said_of(found)


@pytest.mark.full
def test_the_influence_is_updated_without_another_array_of_its_size():
    """Neither the immediate Jacobian of a matrix nor each sequence's gradient is stored."""
    case = Case("GRU-32", jr.gru(32, 32, reset="after"), "snap1", 4.0, FORWARD, steps=3)
    params = case.cell.init(jax.random.key(0))
    learner = jr.online(case.cell, online_steps.squared, rule="snap1")
    state = learner.init(params, (16,))
    x = jax.ShapeDtypeStruct((16, 32), "float32")
    compiled = jax.jit(learner.step, donate_argnums=1).lower(params, state, x, x).compile()
    size = sum(a.nbytes for a in jax.tree.leaves(state.trace))
    assert compiled.memory_analysis().temp_size_in_bytes < size / 2
