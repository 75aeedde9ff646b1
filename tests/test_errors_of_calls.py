"""What a cell or a layer is called with: inputs, carries, flags, parameters, dtypes. Errors come while JAX traces."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.errors import (
    BI,
    CHAIN,
    ELMAN,
    EMBEDDING,
    GRU,
    KEY,
    LSTM,
    NORM,
    READOUT,
    STACK,
    B,
    H,
    I,
    T,
    apply,
    assert_fails,
    carry_of,
    step,
    user_cell,
    xs,
)

CONV = jr.conv_lstm(I, H, spatial_shape=(4, 2))

INPUTS = {
    "field": (
        lambda: apply(CONV, xs(T, B, 4, 3, I)),
        ValueError,
        ["conv_lstm: expected x of shape (*B, 4, 2, 3), got (2, 4, 3, 3)", "channels last"],
    ),
    "field, conv_gru": (
        lambda: step(jr.conv_gru(I, H, spatial_shape=(4, 2)), x=xs(B, 4, 2, 2)),
        ValueError,
        ["conv_gru: expected x of shape (*B, 4, 2, 3), got (2, 4, 2, 2)", "channels last"],
    ),
    "field of integers": (
        lambda: apply(CONV, xs(T, B, 4, 2, I, dtype=int)),
        TypeError,
        ["conv_lstm: expected floating-point inputs, got int32"],
    ),
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

TABLES = {"inputs": INPUTS, "carries": CARRIES, "flags": FLAGS, "params": PARAMS}


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
    """The fix that the message names works."""
    cell = jr.gru(I, H, dtype=jnp.float32)
    _, ys = apply(cell, xs(dtype=jnp.float64))
    assert ys.dtype == jnp.float32
    np.testing.assert_array_equal(ys, apply(cell, xs(dtype=jnp.float32))[1])
