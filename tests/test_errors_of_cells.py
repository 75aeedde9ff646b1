"""What a user's own cell does wrong, and gates that a cell does not have."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as jr
from tests.errors import CHAIN, ELMAN, GRU, KEY, LSTM, B, I, apply, assert_fails, carry_of, user_cell, xs

USER_CELLS = {
    "carry leaf without batch axes": (
        lambda: apply(user_cell(lambda p, c, x: (c, x), lambda p, b=(): (jnp.zeros(b), jnp.zeros(3)))),
        ValueError,
        ["scan(user cell): initial_carry()[1] has shape (3,)", "lead with the batch axes (2,)", "(2, …)"],
    ),
    "step changes the dtype": (
        lambda: apply(user_cell(lambda p, c, x: (c + 0.5, x), lambda p, b=(): jnp.zeros(b, int))),
        TypeError,
        ["scan(user cell): step turned carry from int32 into float32", "cast it back"],
    ),
    "step narrows one leaf": (
        lambda: apply(
            user_cell(
                lambda p, c, x: (c | {"n": c["n"].astype(jnp.bfloat16)}, x),
                lambda p, b=(): {"n": jnp.zeros(b)},
            )
        ),
        TypeError,
        ["scan(user cell): step turned carry['n'] from float32 into bfloat16"],
    ),
    "step changes the shape": (
        lambda: apply(user_cell(lambda p, c, x: (c[:, None], x))),
        ValueError,
        ["scan(user cell): the carry that step returned should have shape (2,), got (2, 1)"],
    ),
    "step changes the structure": (
        lambda: apply(user_cell(lambda p, c, x: ((c, c), x))),
        ValueError,
        ["scan(user cell): the carry that step returned should be array (2,), got tuple of 2"],
    ),
    "step begins to carry": (
        lambda: apply(user_cell(lambda p, c, x: (x, x), lambda p, b=(): ())),
        ValueError,
        ["scan(user cell): the carry that step returned should be tuple of 0", "got array (2, 3)"],
    ),
    "output without batch axes, masked": (
        lambda: apply(user_cell(lambda p, c, x: (c, x.sum())), lengths=jnp.ones(B, int)),
        ValueError,
        ["scan(user cell): the output of step has shape ()", "lead with the batch axes (2,)"],
    ),
    "in a stack": (
        lambda: apply(jr.stack(GRU, user_cell(lambda p, c, x: (c.astype(int), x)))),
        TypeError,
        ["scan(user cell): step turned carry from float32 into int32"],
    ),
    "in reverse": (
        lambda: apply(jr.scan(user_cell(lambda p, c, x: (c.astype(int), x)), reverse=True)),
        TypeError,
        ["scan(user cell): step turned carry from float32 into int32"],
    ),
}


class Update(NamedTuple):
    z: jax.Array


# Its gates do not hold the new state.
HALF_SHOWN = user_cell(lambda p, h, x: (h + x, h), lambda p, b=(): jnp.zeros((*b, 4)), gates=lambda p, h, x: Update(x))

GATES = {
    "elman": (
        lambda: jr.gates(ELMAN, ELMAN.init(KEY), carry_of(ELMAN), xs(B, I)),
        TypeError,
        [
            "gates: elman has no gates; gated cells are cifg_lstm, conv_lstm, ",
            ", peephole_lstm",
            "Cell(…, gates=…)",
        ],
    ),
    "trace, elman": (
        lambda: jr.trace_gates(ELMAN, ELMAN.init(KEY), xs()),
        TypeError,
        ["trace_gates: elman has no"],
    ),
    "user's": (
        lambda: jr.gates(user_cell(lambda p, c, x: (c, x)), {}, (), xs()),
        TypeError,
        ["gates: user cell has no gates", "Cell(…, gates=…)"],
    ),
    "chain": (
        lambda: jr.trace_gates(CHAIN, CHAIN.init(KEY), xs()),
        TypeError,
        ["trace_gates: chain has no gates"],
    ),
    "a wrapper of a cell without gates": (
        lambda: jr.gates(jr.leaky(ELMAN, rate=0.5), ELMAN.init(KEY), carry_of(ELMAN), xs(B, I)),
        TypeError,
        ["gates: leaky(elman) has no gates", "wrappers of them"],
    ),
    "trace, with a key": (
        lambda: jr.trace_gates(jr.zoneout(LSTM, rate=0.1), LSTM.init(KEY), xs(), key=KEY),
        ValueError,
        ["trace_gates: got a key, but the gates of zoneout are those of evaluation", "leave key out"],
    ),
    **{
        f"a state that gates do not hold, {wrap.__name__}": (
            lambda wrap=wrap, option=option: jr.gates(wrap(HALF_SHOWN, **option), {}, jnp.ones((B, 4)), xs(B, 4)),
            TypeError,
            [f"{wrap.__name__}: changes the new state of user cell, which its gates (z) do not hold", "the new h too"],
        )
        for wrap, option in ((jr.leaky, {"rate": 0.5}), (jr.zoneout, {"rate": 0.5}), (jr.clip_state, {"max_value": 1}))
    },
    "Layer": (
        lambda: jr.gates(jr.scan(LSTM), LSTM.init(KEY), carry_of(LSTM), xs(B, I)),
        TypeError,
        ["gates: expected a Cell, got scan(lstm), a Layer; give the Cell that it runs"],
    ),
}

TABLES = {"user cells": USER_CELLS, "gates": GATES}


@pytest.mark.parametrize(("table", "case"), [(t, c) for t, cases in TABLES.items() for c in cases])
def test_error(table, case):
    assert_fails(*TABLES[table][case])
