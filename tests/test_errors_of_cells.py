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


def linear(affine, initial_carry=lambda p, b=(): {"h": jnp.zeros((*b, 4))}, **fields):
    return user_cell(None, initial_carry, affine=affine, **fields)


def zeros(*shape, dtype=jnp.float32):
    return {"h": jnp.zeros(shape, dtype)}


ROTATION = linear(lambda p, x: (1.0, x), None, input_size=I)
AFFINE = {
    "one thing": (
        lambda: apply(linear(lambda p, x: x)),
        TypeError,
        ["user cell: affine must return the pair (a, b), of h_t = a_t * h_{t-1} + b_t, got one thing"],
    ),
    "three": (lambda: apply(linear(lambda p, x: (x, x, x))), TypeError, ["the pair (a, b)", "got tuple of 3"]),
    "a of another structure": (
        lambda: apply(linear(lambda p, x: (jnp.ones(4), zeros(B, 4)))),
        ValueError,
        ["user cell: a of affine should be {'h': array (2, 4)}, as the carry is, got array (4,); return one for each"],
    ),
    "b of another structure": (
        lambda: apply(linear(lambda p, x: (zeros(4), x))),
        ValueError,
        ["user cell: b of affine should be {'h': array (2, 4)}, got array (2, 3)", "the batch axes too"],
    ),
    "a of another shape": (
        lambda: apply(linear(lambda p, x: (zeros(B, 1), zeros(B, 4)))),
        ValueError,
        ["user cell: a['h'] of affine should have shape (2, 4)", "its last axes where all", "got (2, 1); broadcast"],
    ),
    "a with more axes": (
        lambda: apply(linear(lambda p, x: (zeros(1, B, 4), zeros(B, 4)))),
        ValueError,
        ["user cell: a['h'] of affine should have shape (2, 4)", "got (1, 2, 4)"],
    ),
    "b without the batch": (
        lambda: apply(linear(lambda p, x: (zeros(4), zeros(4)))),
        ValueError,
        ["user cell: b of affine['h'] should have shape (2, 4), got (4,)", "the batch axes too"],
    ),
    "complex a": (
        lambda: apply(linear(lambda p, x: (zeros(4, dtype=complex), zeros(B, 4)))),
        TypeError,
        ["user cell: a['h'] and b['h'] of affine are complex64 and float32", "from float32 into complex64; cast", "or"],
    ),
    "wide b": (
        lambda: apply(linear(lambda p, x: (0.5, x), lambda p, b=(): jnp.zeros((*b, I), "bfloat16"))),
        TypeError,
        ["a and b of affine are float32 and float32, which would turn the carry from bfloat16 into float32"],
    ),
    "a carry of another batch": (
        lambda: apply(jr.lru(I, 4), carry=jnp.zeros((B + 1, 4), complex)),
        ValueError,
        ["scan(lru): carry should have shape (2, 4), got (3, 4)", "initial_carry(params, batch_shape=(2,))"],
    ),
    "a real carry": (
        lambda: jr.lru(I, 4).step(jr.lru(I, 4).init(KEY), jnp.zeros((B, 4)), xs(B, I)),
        TypeError,
        ["lru: carry is float32 but the cell carries complex64; cast it with .astype('complex64')"],
    ),
    "affine of another input": (
        lambda: jr.s5(I, 4).affine(jr.s5(I, 4).init(KEY), xs(B, I + 1)),
        ValueError,
        ["s5: expected x of shape (*B, 3), got 4 features"],
    ),
    "no width": (
        lambda: apply(ROTATION._replace(input_size=None)),
        ValueError,
        [
            "user cell: without initial_carry a cell with affine starts from zeros",
            "input_size=None",
            "give input_size=…",
        ],
    ),
    "images": (lambda: apply(ROTATION._replace(x_ndim=2)), ValueError, ["got input_size=3 and x_ndim=2"]),
    "step and affine": (
        lambda: ROTATION._replace(affine=lambda p, x: (x, x), step=lambda p, c, x: (c, x)),
        TypeError,
        ["Cell: step and affine were both given", "give affine alone"],
    ),
    "noise": (
        lambda: ROTATION._replace(noise=lambda *args: ()),
        TypeError,
        ["Cell: noise reaches step, and the step of a cell with affine has none", "give step in place of affine"],
    ),
    "output alone": (
        lambda: user_cell(lambda p, c, x: (c, x), output=lambda p, c, x: x),
        TypeError,
        ["Cell: output is that of a cell with affine; give affine too"],
    ),
    "init alone": (
        lambda: jr.Cell(lambda key: ()),
        TypeError,
        ["Cell: initial_carry must be a function, got None; give init, initial_carry and step, or init and affine"],
    ),
    "no step": (lambda: user_cell(None), TypeError, ["Cell: step must be a function, got None"]),
}


class Update(NamedTuple):
    z: jax.Array


ANTISYMMETRIC = jr.antisymmetric_rnn(I, 4)

# Its gates do not hold the new state.
HALF_SHOWN = user_cell(lambda p, h, x: (h + x, h), lambda p, b=(): jnp.zeros((*b, 4)), gates=lambda p, h, x: Update(x))

GATES = {
    "elman": (
        lambda: jr.gates(ELMAN, ELMAN.init(KEY), carry_of(ELMAN), xs(B, I)),
        TypeError,
        [
            "gates: elman has no gates; gated cells are antisymmetric_rnn, cifg_lstm, conv_gru, conv_lstm, ",
            ", peephole_lstm",
            "Cell(…, gates=…)",
        ],
    ),
    "not gated": (
        lambda: jr.gates(ANTISYMMETRIC, ANTISYMMETRIC.init(KEY), carry_of(ANTISYMMETRIC), xs(B, I)),
        TypeError,
        ["gates: antisymmetric_rnn has no gates; build it with gated=True"],
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

TABLES = {"user cells": USER_CELLS, "affine": AFFINE, "gates": GATES}


@pytest.mark.parametrize(("table", "case"), [(t, c) for t, cases in TABLES.items() for c in cases])
def test_error(table, case):
    assert_fails(*TABLES[table][case])
