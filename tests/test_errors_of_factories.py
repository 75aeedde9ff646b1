"""What cells, layers and models are made of: sizes, options, members, specs."""

import jax.numpy as jnp
import pytest

import jaxrnn as jr
from tests.errors import BI, GRU, LSTM, READOUT, STACK, H, I, apply, assert_fails, step, widen

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
        ["scan: expected a Cell, got stack, a Layer", "it already runs over time, use it as it is"],
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

SPECS = {
    "unknown kind": (
        lambda: jr.build({"kind": "lsmt"}),
        ValueError,
        ["build: no cell, layer or model is called 'lsmt'; did you mean 'lstm'?"],
    ),
    "unknown kind like no other": (
        lambda: jr.build({"kind": "wavenet"}),
        ValueError,
        ["build: no cell, layer or model is called 'wavenet'; known kinds: antisymmetric_rnn, bidirectional, branch, "],
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
    "gate activation": (
        lambda: jr.lstm(I, H, gate_activation="sigmoidd"),
        ValueError,
        ["lstm: gate_activation must be one of 'tanh'", "got 'sigmoidd'; did you mean 'sigmoid'?"],
    ),
    "mgu, reset": (lambda: jr.mgu(I, H, reset="never"), ValueError, ["mgu: reset must be one of 'before', 'after'"]),
    "mgu, keep": (lambda: jr.mgu(I, H, keep="old"), ValueError, ["mgu: keep must be one of 'candidate', 'state'"]),
    "bias, a number": (
        lambda: jr.gru(I, H, bias=0.0),
        TypeError,
        ["gru: bias must be True or False, got 0.0 (float); how biases start is bias_init"],
    ),
    **{
        f"{option} without biases, {make.__name__}": (
            lambda make=make, option=option: make(I, H, bias=False, **{option: 5.0}),
            ValueError,
            [f"{make.__name__}: {option}=5.0 sets the", "gate's bias, but bias=False; give one of them"],
        )
        for make, option in ((jr.lstm, "forget_bias"), (jr.cifg_lstm, "T_max"), (jr.gru, "T_max"))
    },
    "projection": (
        lambda: jr.lstm(I, H, projection_size=0),
        ValueError,
        ["lstm: projection_size must be a positive int, got 0"],
    ),
    "bound": (
        lambda: jr.indrnn(I, H, recurrent_max=0.0),
        ValueError,
        ["indrnn: recurrent_max must be above 0, got 0.0; 2 ** (1 / T) is for T steps"],
    ),
    "start beyond the bound": (
        lambda: jr.indrnn(I, H, recurrent_max=0.5, initial_min=0.7),
        ValueError,
        ["indrnn: initial_min must be within ± 0.5 and below it", "got 0.7"],
    ),
    "step size": (
        lambda: jr.antisymmetric_rnn(I, H, epsilon=0.0),
        ValueError,
        ["antisymmetric_rnn: epsilon must be above 0, got 0.0; 0.01 to 1 is usual"],
    ),
    "diffusion": (
        lambda: jr.antisymmetric_rnn(I, H, gamma=-0.1),
        ValueError,
        ["antisymmetric_rnn: gamma must be at least 0, got -0.1"],
    ),
    "time step": (lambda: jr.lem(I, H, dt=0.0), ValueError, ["lem: dt must be above 0, got 0.0; 1 is usual"]),
    "space, none": (
        lambda: jr.conv_lstm(I, H, spatial_shape=()),
        ValueError,
        ["conv_lstm: spatial_shape must have 1 to 3 sizes, got ()"],
    ),
    "space, a float": (
        lambda: jr.conv_lstm(I, H, spatial_shape=(4, 2.5)),
        TypeError,
        ["conv_lstm: spatial_shape[", "] must be a positive int"],
    ),
    "kernel of another dimension": (
        lambda: jr.conv_lstm(I, H, spatial_shape=(4, 4), kernel_size=(3,)),
        ValueError,
        ["conv_lstm: kernel_size=(3,) and spatial_shape=(4, 4) have different numbers of dimensions"],
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
        for rate in (1.0, -0.1, 20)
    },
    "epsilon": (
        lambda: jr.layer_norm(I, epsilon=0),
        ValueError,
        ["layer_norm: epsilon must be positive, got 0"],
    ),
}

TABLES = {"combinations": COMBINATIONS, "specs": SPECS, "sizes": SIZES, "options": OPTIONS}


@pytest.mark.parametrize(("table", "case"), [(t, c) for t, cases in TABLES.items() for c in cases])
def test_error(table, case):
    assert_fails(*TABLES[table][case])
