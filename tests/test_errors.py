"""Bad inputs raise while JAX traces, from jaxrnn's own code: who, what was expected, what came, and the mend.

A case is ``(call, error, words)``: the words are what the message must say, in this order.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr

T, B, I, H = 7, 2, 3, 5
KEY = jax.random.key(0)


def assert_fails(call, error, words):
    """Under ``eval_shape``, where nothing is computed: what fails there fails while tracing."""
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, words))) as info:
        jax.eval_shape(call)
    assert Path(jr.__file__).parent in Path(info.traceback[-1].path).parents, f"raised in {info.traceback[-1].path}"


def xs(*shape, dtype=jnp.float32):
    return jnp.ones(shape or (T, B, I), dtype)


def step(cell, *, params=None, carry=None, x=None, batch_shape=(B,)):
    """One step of a cell, all right but for what is given."""
    params = cell.init(KEY) if params is None else params
    carry = cell.initial_carry(cell.init(KEY), batch_shape) if carry is None else carry
    return cell.step(params, carry, xs(B, I) if x is None else x)


def apply(layer, x=None, carry=None, *, params=None, **options):
    """A run of a layer (a Cell is scanned), all right but for what is given."""
    layer = jr.scan(layer) if isinstance(layer, jr.Cell) else layer
    return layer.apply(layer.init(KEY) if params is None else params, xs() if x is None else x, carry, **options)


def carry_of(cell, batch_shape=(B,), dtype=None):
    carry = cell.initial_carry(cell.init(KEY), batch_shape)
    return carry if dtype is None else jax.tree.map(lambda a: a.astype(dtype), carry)


def user_cell(step, initial_carry=lambda params, batch_shape=(): jnp.zeros(batch_shape), **fields):
    return jr.Cell(lambda key: {"a": jnp.ones(())}, initial_carry, step, **fields)


def widen(size):
    """A user's cell that does not say that it puts out ``size`` features."""
    return user_cell(lambda p, c, x: (c, jnp.ones((*x.shape[:-1], size))))


LSTM, GRU, ELMAN = jr.lstm(I, H), jr.gru(I, H), jr.elman(I, H)
STACK = jr.stack(LSTM, jr.dropout(0.1), jr.gru(H, 4))
CHAIN = jr.chain(LSTM, jr.gru(H, 4))
BI = jr.bidirectional(LSTM, GRU)
EMBEDDING, READOUT, NORM = jr.embedding(9, I), jr.readout(I, 2), jr.layer_norm(I)

INPUTS = {
    "features, step": (
        lambda: step(LSTM, x=xs(B, 4)),
        ValueError,
        ["lstm: expected x of shape (*B, 3)", "got 4 features", "(2, 4)", "input_size=4"],
    ),
    "features, scan": (
        lambda: apply(LSTM, xs(T, B, 4)),
        ValueError,
        ["scan(lstm): expected x of shape (T, *B, 3)", "got 4 features", "(7, 2, 4)", "input_size=4"],
    ),
    "features, stack": (
        lambda: apply(STACK, xs(T, B, 4)),
        ValueError,
        ["scan(lstm): expected", "(T, *B, 3)", "got 4 features", "input_size=4"],
    ),
    "features, chain": (
        lambda: apply(CHAIN, xs(T, B, 4)),
        ValueError,
        ["(T, *B, 3)", "got 4 features", "input_size=4"],
    ),
    "features, bidirectional": (lambda: apply(BI, xs(T, B, 4)), ValueError, ["(T, *B, 3)", "got 4 features"]),
    "features, readout": (
        lambda: apply(READOUT, xs(T, B, 4)),
        ValueError,
        ["scan(readout)", "got 4 features"],
    ),
    "features, layer_norm": (
        lambda: step(NORM, carry=(), x=xs(B, 4)),
        ValueError,
        ["layer_norm: expected x of shape (*B, 3)", "got 4 features"],
    ),
    "features, gates": (
        lambda: jr.gates(LSTM, LSTM.init(KEY), carry_of(LSTM), xs(B, 4)),
        ValueError,
        ["lstm: expected x of shape (*B, 3)", "got 4 features"],
    ),
    "scalar": (
        lambda: step(GRU, x=jnp.ones(())),
        ValueError,
        ["gru: expected x of shape (*B, 3)", "got a scalar"],
    ),
    "no time axis": (
        lambda: apply(LSTM, xs(I)),
        ValueError,
        ["scan(lstm): xs must be (T, *B, I)", "got shape (3,)", "needs a time axis", "xs[None]"],
    ),
    "no time axis, stack": (
        lambda: apply(STACK, xs(I)),
        ValueError,
        ["xs must be (T, *B, I)", "got shape (3,)"],
    ),
    "no time axis, tokens": (
        lambda: apply(EMBEDDING, jnp.asarray(3)),
        ValueError,
        ["scan(embedding): xs must be (T, *B)", "got shape ()", "xs[None]"],
    ),
    "no arrays": (
        lambda: apply(user_cell(lambda p, c, x: (c, c)), {}),
        ValueError,
        ["scan(user cell): xs holds no array", "(T, *B, …)"],
    ),
    "leaves disagree": (
        lambda: apply(user_cell(lambda p, c, x: (c, c)), {"a": xs(), "b": xs(T - 1, B, I)}),
        ValueError,
        ["scan(user cell): the leaves of xs disagree", "(T, *B)", "(7, 2) in xs['a']", "(6, 2) in xs['b']"],
    ),
    "integers": (
        lambda: apply(LSTM, xs(dtype=int)),
        TypeError,
        ["lstm: expected floating-point inputs, got int32", "jr.embedding", "astype('float32')"],
    ),
    "integers, step": (
        lambda: step(GRU, x=xs(B, I, dtype=int)),
        TypeError,
        ["gru: expected floating-point inputs, got int32", "jr.embedding"],
    ),
    "booleans": (
        lambda: step(ELMAN, x=xs(B, I, dtype=bool)),
        TypeError,
        ["elman: expected floating-point", "got bool"],
    ),
    "float tokens": (
        lambda: apply(EMBEDDING, xs(T, B)),
        TypeError,
        ["embedding: expected integer tokens, got float32", "astype('int32')"],
    ),
    "features for tokens": (
        lambda: apply(jr.stack(LSTM, EMBEDDING)),
        TypeError,
        ["embedding: expected integer tokens, got float32"],
    ),
}

CARRIES = {
    "another cell's, step": (
        lambda: step(LSTM, carry=carry_of(GRU)),
        ValueError,
        [
            "lstm: carry should be LSTMCarry(h=array (2, 5), c=array (2, 5))",
            "got array (2, 5)",
            "initial_carry",
        ],
    ),
    "another cell's, scan": (
        lambda: apply(GRU, carry=carry_of(LSTM)),
        ValueError,
        [
            "scan(gru): carry should be array (2, 5)",
            "got LSTMCarry(",
            "initial_carry(params, batch_shape=(2,))",
        ],
    ),
    "a readout's for an LSTM, step": (
        lambda: step(LSTM, carry=()),
        ValueError,
        [
            "lstm: carry should be LSTMCarry(h=array (2, 5), c=array (2, 5))",
            "got tuple of 0",
            "initial_carry",
        ],
    ),
    "a readout's for an Elman, step": (
        lambda: step(ELMAN, carry=()),
        ValueError,
        ["elman: carry should be array (2, 5)", "got tuple of 0", "initial_carry"],
    ),
    "a readout's for an LSTM, scan": (
        lambda: apply(LSTM, carry=()),
        ValueError,
        ["scan(lstm): carry should be LSTMCarry(", "got tuple of 0"],
    ),
    "an LSTM's for a readout": (
        lambda: step(READOUT, carry=carry_of(LSTM)),
        ValueError,
        ["readout: carry should be tuple of 0", "got LSTMCarry("],
    ),
    "of another batch, step": (
        lambda: step(LSTM, carry=carry_of(LSTM, (3,))),
        ValueError,
        ["lstm: carry.h should have shape (2, 5), got (3, 5)", "batch_shape=(2,)"],
    ),
    "of another batch, scan": (
        lambda: apply(LSTM, carry=carry_of(LSTM, (3,))),
        ValueError,
        ["scan(lstm): carry.h should have shape (2, 5), got (3, 5)", "batch_shape=(2,)"],
    ),
    "without batch axis": (
        lambda: apply(GRU, carry=carry_of(GRU, ())),
        ValueError,
        ["scan(gru): carry should have shape (2, 5), got (5,)"],
    ),
    "of another size": (
        lambda: apply(GRU, carry=carry_of(jr.gru(I, 6))),
        ValueError,
        ["scan(gru): carry should have shape (2, 5), got (2, 6)"],
    ),
    "of another dtype, step": (
        lambda: step(LSTM, carry=carry_of(LSTM, dtype=jnp.bfloat16)),
        TypeError,
        ["lstm: carry.h is bfloat16 but the cell carries float32", "astype('float32')"],
    ),
    "of another dtype, scan": (
        lambda: apply(LSTM, carry=carry_of(LSTM, dtype=jnp.int32)),
        TypeError,
        ["scan(lstm): carry.h is int32 but the cell carries float32", "astype('float32')"],
    ),
    "stack: one entry": (
        lambda: apply(STACK, carry=carry_of(LSTM)),
        ValueError,
        ["stack: carry must be a tuple", "3 members (lstm, dropout, gru)", "got LSTMCarry", "initial_carry"],
    ),
    "stack: members mixed up": (
        lambda: apply(STACK, carry=(carry_of(GRU), (), carry_of(LSTM))),
        ValueError,
        ["scan(lstm): carry should be LSTMCarry(", "got array (2, 5)"],
    ),
    "chain: too short": (
        lambda: step(CHAIN, carry=(carry_of(LSTM),)),
        ValueError,
        ["chain: carry must be a tuple", "2 members (lstm, gru)", "got tuple of 1"],
    ),
    "bidirectional: a tuple": (
        lambda: apply(BI, carry=(carry_of(LSTM), carry_of(GRU))),
        ValueError,
        ["bidirectional: carry must be BiCarry(forward, backward), got tuple", "initial_carry"],
    ),
    "bidirectional: one direction": (
        lambda: apply(BI, carry=carry_of(LSTM)),
        ValueError,
        ["bidirectional: carry must be BiCarry(forward, backward), got LSTMCarry"],
    ),
    "bidirectional: directions swapped": (
        lambda: apply(BI, carry=jr.BiCarry(carry_of(GRU), carry_of(LSTM))),
        ValueError,
        ["scan(lstm): carry should be LSTMCarry(", "got array (2, 5)"],
    ),
    "batch_shape an int": (
        lambda: LSTM.initial_carry(LSTM.init(KEY), B),
        TypeError,
        ["lstm: batch_shape must be a tuple", "got 2", "(2,)"],
    ),
}

FLAGS = {
    "lengths' shape": (
        lambda: apply(LSTM, lengths=jnp.ones(T, int)),
        ValueError,
        ["scan(lstm): lengths must have the batch shape (2,)", "got (7,)"],
    ),
    "one length for all": (
        lambda: apply(GRU, lengths=4),
        ValueError,
        ["scan(gru): lengths", "(2,)", "got ()"],
    ),
    "lengths' dtype": (
        lambda: apply(LSTM, lengths=jnp.ones(B)),
        TypeError,
        ["scan(lstm): lengths must be integers, got float32", "astype('int32')"],
    ),
    "mask's dtype": (
        lambda: apply(LSTM, mask=xs(T, B)),
        TypeError,
        ["scan(lstm): mask must be boolean (True where a step is valid), got float32", "mask.astype(bool)"],
    ),
    "mask's shape": (
        lambda: apply(LSTM, mask=xs(B, T, dtype=bool)),
        ValueError,
        ["scan(lstm): mask must have shape (7, 2)", "(T, *B)", "got (2, 7)"],
    ),
    "mask of a feature axis": (
        lambda: apply(LSTM, mask=xs(dtype=bool)),
        ValueError,
        ["scan(lstm): mask must have shape (7, 2)", "got (7, 2, 3)"],
    ),
    "resets' dtype": (
        lambda: apply(LSTM, resets=xs(T, B, dtype=int)),
        TypeError,
        [
            "scan(lstm): resets must be boolean (True where a new episode begins), got int32",
            "resets.astype(bool)",
        ],
    ),
    "resets' shape": (
        lambda: apply(LSTM, resets=xs(B, T, dtype=bool)),
        ValueError,
        ["scan(lstm): resets must have shape (7, 2)", "(T, *B)", "got (2, 7)"],
    ),
    "stack, lengths": (
        lambda: apply(STACK, lengths=jnp.ones(T, int)),
        ValueError,
        ["lengths", "(2,)", "got (7,)"],
    ),
    "bidirectional, mask": (
        lambda: apply(BI, mask=xs(T, B)),
        TypeError,
        ["mask must be boolean", "got float32"],
    ),
    "residual, lengths": (
        lambda: apply(jr.residual(jr.scan(jr.gru(I, I))), lengths=jnp.ones(T, int)),
        ValueError,
        ["lengths", "(2,)", "got (7,)"],
    ),
    "trace_gates, mask": (
        lambda: jr.trace_gates(LSTM, LSTM.init(KEY), xs(), mask=xs(B, T, dtype=bool)),
        ValueError,
        ["mask must have shape (7, 2)", "got (2, 7)"],
    ),
}

PARAMS = {
    "another kind's, step": (
        lambda: step(LSTM, params=GRU.init(KEY)),
        ValueError,
        [
            "lstm: params should be LSTMParams(W_xh=array (3, 20)",
            "got GRUParams(W_xh=array (3, 15)",
            "init(key)",
        ],
    ),
    "another kind's, scan": (
        lambda: apply(GRU, params=LSTM.init(KEY)),
        ValueError,
        ["scan(gru): params should be GRUParams(", "got LSTMParams(", "init(key)"],
    ),
    "another kind's, initial_carry": (
        lambda: GRU.initial_carry(LSTM.init(KEY)),
        ValueError,
        ["gru: params should be GRUParams(", "got LSTMParams("],
    ),
    "another reset's": (
        lambda: apply(GRU, params=jr.gru(I, H, reset="after").init(KEY)),
        ValueError,
        ["scan(gru): params should be", "b_hh=None", "got GRUParams(", "b_hh=array (5,)"],
    ),
    "another size's, step": (
        lambda: step(LSTM, params=jr.lstm(I, 6).init(KEY)),
        ValueError,
        ["lstm: params.W_xh should have shape (3, 20), got (3, 24)", "init(key)"],
    ),
    "another size's, scan": (
        lambda: apply(LSTM, params=jr.lstm(I, 6).init(KEY)),
        ValueError,
        ["scan(lstm): params.W_xh should have shape (3, 20), got (3, 24)", "init(key)"],
    ),
    "another vocabulary's": (
        lambda: apply(EMBEDDING, xs(T, B, dtype=int), params=jr.embedding(8, I).init(KEY)),
        ValueError,
        ["scan(embedding): params.table should have shape (9, 3), got (8, 3)"],
    ),
    "user's": (
        lambda: apply(user_cell(lambda p, c, x: (c, c)), params={"b": jnp.ones(())}),
        ValueError,
        ["scan(user cell): params should be {'a': array ()}", "got {'b': array ()}"],
    ),
    "stack: too short": (
        lambda: apply(STACK, params=STACK.init(KEY)[:2]),
        ValueError,
        ["stack: params must be a tuple", "3 members (lstm, dropout, gru)", "got tuple of 2", "init"],
    ),
    "stack: a list": (
        lambda: apply(STACK, params=list(STACK.init(KEY))),
        ValueError,
        ["stack: params", "got list"],
    ),
    "stack: members mixed up": (
        lambda: apply(STACK, params=STACK.init(KEY)[::-1]),
        ValueError,
        ["scan(lstm): params should be LSTMParams(", "got GRUParams("],
    ),
    "chain: one cell's": (
        lambda: step(CHAIN, params=LSTM.init(KEY)),
        ValueError,
        ["chain: params must be a tuple", "2 members (lstm, gru)", "got LSTMParams"],
    ),
    "bidirectional: a tuple": (
        lambda: apply(BI, params=tuple(BI.init(KEY))),
        ValueError,
        ["bidirectional: params must be BiParams(forward, backward), got tuple", "init"],
    ),
}

COMBINATIONS = {
    "stack of nothing": (lambda: jr.stack(), ValueError, ["stack: needs at least one member"]),
    "chain of nothing": (lambda: jr.chain(), ValueError, ["chain: needs at least one member"]),
    "stack of a function": (
        lambda: jr.stack(LSTM, jnp.tanh),
        TypeError,
        ["stack: member 1 must be a Cell or a Layer, got"],
    ),
    "stack, sizes": (
        lambda: jr.stack(jr.lstm(I, 32), jr.gru(16, 4)),
        ValueError,
        [
            "stack: layer 1 (gru) expects input_size=16 but layer 0 (lstm) outputs 32",
            "build it with input_size=32",
        ],
    ),
    "stack, sizes of layers": (
        lambda: jr.stack(BI, jr.scan(jr.lstm(H, 4))),
        ValueError,
        [
            "stack: layer 1 (scan(lstm)) expects input_size=5 but layer 0 (bidirectional) outputs 10",
            "input_size=10",
        ],
    ),
    "chain, sizes": (
        lambda: jr.chain(LSTM, READOUT),
        ValueError,
        ["chain: layer 1 (readout) expects input_size=3 but layer 0 (lstm) outputs 5", "input_size=5"],
    ),
    "stack, a user's cell, at apply": (
        lambda: apply(jr.stack(widen(4), jr.gru(6, 2))),
        ValueError,
        ["stack: layer 1 (gru) expects input_size=6 but layer 0 (user cell) outputs 4", "input_size=4"],
    ),
    "chain, a user's cell, at step": (
        lambda: step(jr.chain(widen(4), jr.gru(6, 2))),
        ValueError,
        ["chain: layer 1 (gru) expects input_size=6 but layer 0 (user cell) outputs 4", "input_size=4"],
    ),
    "stack, through dropout": (
        lambda: apply(jr.stack(LSTM, jr.dropout(0.5), jr.gru(4, 4))),
        ValueError,
        ["stack: layer 2 (gru) expects input_size=4 but layer 1 (dropout) outputs 5", "input_size=5"],
    ),
    "chain with a Layer": (
        lambda: jr.chain(LSTM, jr.scan(jr.gru(H, 4))),
        TypeError,
        ["chain: member 1 (scan(gru)) is a Layer", "whole sequence", "jr.stack takes both"],
    ),
    "scan of a Layer": (
        lambda: jr.scan(STACK),
        TypeError,
        ["scan: expected a Cell, got Layer", "already runs over time, use it as it is"],
    ),
    "scan of a function": (
        lambda: jr.scan(lambda c, x: (c, x)),
        TypeError,
        ["scan: expected a Cell, got function"],
    ),
    "unroll": (lambda: jr.scan(LSTM, unroll=0), ValueError, ["scan: unroll must be a positive int, got 0"]),
    "bidirectional with a Layer": (
        lambda: jr.bidirectional(LSTM, jr.scan(GRU)),
        TypeError,
        ["bidirectional: backward must be a Cell, got Layer"],
    ),
    "bidirectional, inputs": (
        lambda: jr.bidirectional(LSTM, jr.gru(4, H)),
        ValueError,
        ["bidirectional: forward (lstm) has input_size=3 but backward (gru) has input_size=4"],
    ),
    "bidirectional, sum of two sizes": (
        lambda: jr.bidirectional(LSTM, jr.gru(I, 4), merge="sum"),
        ValueError,
        [
            "bidirectional: merge='sum' needs outputs of one size, got 5 forward and 4 backward",
            "hidden_size",
            "concat",
        ],
    ),
    "bidirectional, users' cells of two sizes": (
        lambda: apply(jr.bidirectional(widen(4), widen(6), merge="sum")),
        ValueError,
        ["bidirectional: merge='sum' needs outputs of one size", "4", "forward", "6", "backward"],
    ),
    "residual of two sizes": (
        lambda: jr.residual(LSTM),
        ValueError,
        ["residual: lstm maps 3 features to 5", "output features equal to its input features"],
    ),
    "residual of a Layer of two sizes": (
        lambda: jr.residual(BI),
        ValueError,
        ["residual: bidirectional maps 3 features to 10"],
    ),
    "residual of a user's cell": (
        lambda: apply(jr.residual(widen(4))),
        ValueError,
        ["residual: user cell turned (2, 3) into (2, 4)", "output features equal to its input features"],
    ),
    "residual of a user's layer": (
        lambda: apply(jr.residual(jr.scan(widen(4)))),
        ValueError,
        ["residual: user layer turned (7, 2, 3) into (7, 2, 4)"],
    ),
}

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

GATES = {
    "elman": (
        lambda: jr.gates(ELMAN, ELMAN.init(KEY), carry_of(ELMAN), xs(B, I)),
        TypeError,
        ["gates: elman has no gates", "lstm, gru and peephole_lstm", "Cell(…, gates=…)"],
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
    "Layer": (
        lambda: jr.gates(jr.scan(LSTM), LSTM.init(KEY), carry_of(LSTM), xs(B, I)),
        TypeError,
        ["gates: expected a Cell, got Layer"],
    ),
}

SPECS = {
    "unknown kind": (
        lambda: jr.build({"kind": "lsmt"}),
        ValueError,
        ["build: no cell, layer or model is called 'lsmt'; did you mean 'lstm'?", "known kinds: elman"],
    ),
    "unknown option": (
        lambda: jr.build({"kind": "lstm", "options": {"input_size": 3, "hiden_size": 5}}),
        ValueError,
        ["build: lstm has no option 'hiden_size'; did you mean 'hidden_size'?"],
    ),
    "unknown kind of a child": (
        lambda: jr.build({"kind": "stack", "children": [{"kind": "grru"}]}),
        ValueError,
        ["build: no cell, layer or model is called 'grru'; did you mean 'gru'?"],
    ),
    "no kind": (
        lambda: jr.build({"kid": "lstm"}),
        ValueError,
        ["Spec.from_dict: expected", "kind", "got {'kid': 'lstm'}"],
    ),
    "no dict": (lambda: jr.build(None), ValueError, ["Spec.from_dict: expected a dict", "kind", "got None"]),
    "options a list": (
        lambda: jr.build({"kind": "lstm", "options": [["input_size", 3]]}),
        ValueError,
        ["Spec.from_dict: expected", "options", "got"],
    ),
    "a function": (
        lambda: jr.elman(I, H, activation=jnp.sin).spec.to_dict(),
        TypeError,
        ["Spec.to_dict: elman's option activation is the function", "sin", "JSON", "built-in one"],
    ),
    "a function in a child": (
        lambda: jr.stack(GRU, jr.bidirectional(jr.gru(H, H), jr.gru(H, H), merge=jnp.add)).spec.to_dict(),
        TypeError,
        ["Spec.to_dict: bidirectional's option merge is the function", "JSON"],
    ),
}

SIZES = {
    **{
        f"{name}={value!r} of {who}": (
            lambda make=make, value=value: make(value),
            error,
            [f"{who}: {name} must be", came],
        )
        for who, name, make in (
            ("elman", "input_size", lambda size: jr.elman(size, H)),
            ("elman", "output_size", lambda size: jr.elman(I, H, output_size=size)),
            ("lstm", "hidden_size", lambda size: jr.lstm(I, size)),
            ("gru", "hidden_size", lambda size: jr.gru(I, size)),
            ("peephole_lstm", "input_size", lambda size: jr.peephole_lstm(size, H)),
            ("readout", "output_size", lambda size: jr.readout(I, size)),
            ("layer_norm", "input_size", jr.layer_norm),
            ("embedding", "vocabulary_size", lambda size: jr.embedding(size, H)),
        )
        for value, error, came in (
            (-3, ValueError, "got -3; give at least 1"),
            (0, ValueError, "got 0; give at least 1"),
            (5.0, TypeError, "got 5.0 (float)"),
            (True, TypeError, "got True (bool)"),
            ("5", TypeError, "got '5' (str)"),
        )
    },
}

OPTIONS = {
    "merge": (
        lambda: jr.bidirectional(LSTM, LSTM, merge="concatenate"),
        ValueError,
        [
            "bidirectional: merge must be one of 'concat', 'sum', 'mean', 'product' or a function",
            "'concatenate'",
        ]
        + ["did you mean 'concat'?"],
    ),
    "activation": (
        lambda: jr.elman(I, H, activation="rellu"),
        ValueError,
        ["elman: activation must be one of 'tanh'", "or a function, got 'rellu'; did you mean 'relu'?"],
    ),
    "reset": (
        lambda: jr.gru(I, H, reset="afer"),
        ValueError,
        ["gru: reset must be one of 'before', 'after', got 'afer'; did you mean 'after'?"],
    ),
    "reset, a flag": (
        lambda: jr.gru(I, H, reset=True),
        ValueError,
        ["gru: reset must be one of", "got True"],
    ),
    "peephole": (
        lambda: jr.peephole_lstm(I, H, peephole="diag"),
        ValueError,
        ["peephole_lstm: peephole must be one of 'diagonal', 'full', got 'diag'; did you mean 'diagonal'?"],
    ),
    **{
        f"{option} of {who}": (
            lambda make=make, option=option: make(**{option: "ortogonal"}),
            ValueError,
            [
                f"{who}: {option} must be one of 'glorot_uniform'",
                "got 'ortogonal'; did you mean 'orthogonal'?",
            ],
        )
        for who, option, make in (
            ("elman", "input_init", lambda **kw: jr.elman(I, H, **kw)),
            ("lstm", "recurrent_init", lambda **kw: jr.lstm(I, H, **kw)),
            ("gru", "bias_init", lambda **kw: jr.gru(I, H, **kw)),
            ("peephole_lstm", "recurrent_init", lambda **kw: jr.peephole_lstm(I, H, **kw)),
            ("readout", "kernel_init", lambda **kw: jr.readout(I, H, **kw)),
            ("embedding", "table_init", lambda **kw: jr.embedding(I, H, **kw)),
        )
    },
    **{
        f"dropout rate {rate}": (
            lambda rate=rate: jr.dropout(rate),
            ValueError,
            [f"dropout: rate must be at least 0 and below 1, got {rate}"],
        )
        for rate in (1.0, -0.1, 20, float("nan"))
    },
    "epsilon": (
        lambda: jr.layer_norm(I, epsilon=0),
        ValueError,
        ["layer_norm: epsilon must be positive, got 0"],
    ),
}

TABLES = {
    "inputs": INPUTS,
    "carries": CARRIES,
    "flags": FLAGS,
    "params": PARAMS,
    "combinations": COMBINATIONS,
    "user cells": USER_CELLS,
    "gates": GATES,
    "specs": SPECS,
    "sizes": SIZES,
    "options": OPTIONS,
}


@pytest.mark.parametrize(("table", "case"), [(t, c) for t, cases in TABLES.items() for c in cases])
def test_error(table, case):
    assert_fails(*TABLES[table][case])


MORE_DIGITS = {
    "lstm": (
        lambda: apply(LSTM, xs(dtype=jnp.float64)),
        ["lstm: x is float64 but the parameters are float32", "dtype="],
    ),
    "lstm, step": (
        lambda: step(LSTM, x=xs(B, I, dtype=jnp.float64)),
        ["lstm: x is float64", "cast x to float32"],
    ),
    "readout": (
        lambda: apply(READOUT, xs(dtype=jnp.float64)),
        ["readout: x is float64", "cast x to float32"],
    ),
    "layer_norm": (
        lambda: apply(NORM, xs(dtype=jnp.float64)),
        ["layer_norm: x is float64", "cast x to float32"],
    ),
    "stack": (lambda: apply(STACK, xs(dtype=jnp.float64)), ["lstm: x is float64", "cast x to float32"]),
    "carry": (
        lambda: apply(LSTM, carry=carry_of(LSTM, dtype=jnp.float64)),
        ["scan(lstm): carry.h is float64 but the cell carries float32", "astype('float32')"],
    ),
}


@pytest.mark.parametrize("case", MORE_DIGITS)
def test_digits_are_not_dropped_silently(case, x64):
    call, words = MORE_DIGITS[case]
    assert_fails(call, TypeError, words)


def test_declaring_the_dtype_lets_more_digits_in(x64):
    """The mend that the message names works."""
    cell = jr.gru(I, H, dtype=jnp.float32)
    _, ys = apply(cell, xs(dtype=jnp.float64))
    assert ys.dtype == jnp.float32
    np.testing.assert_array_equal(ys, apply(cell, xs(dtype=jnp.float32))[1])
