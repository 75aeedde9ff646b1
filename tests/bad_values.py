"""What each parameter of the public functions must refuse, by its name and its annotation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import ANY_NUMBER, FROM_ZERO
from tests.faces import CARRY, KEY, PARAMS, STATE, B, H, I, T, X

# What is wrong for a parameter that no annotation describes, by its name, or by its function's place and its name.
_NOT_FLOATS = [None, "x", jnp.ones((T, B, I), int)]
_TREES = ["x", {"W": jnp.ones(3)}]
BAD: dict[str, Sequence[Any]] = {
    **dict.fromkeys(
        ("activation", "gate_activation"),
        (
            "tanhh",
            3,
            None,
            ("tanh",),
        ),
    ),
    **dict.fromkeys(
        ("input_init", "recurrent_init", "bias_init", "kernel_init"),
        (
            "glorott",
            3,
            None,
        ),
    ),
    "table_init": ["glorott", 3],
    "spatial_shape": [None, 0, "5", (0,), (), (1.5,), (2, 2, 2, 2)],
    "kernel_size": [None, 0, "3", (0,), (), (1.5,), (3, 3)],
    "form": ["some", None],
    "tau": [None, "x", 0.0, -1.0, math.inf, (1.0, 2.0), jnp.ones((H, 1))],
    "dt": [0.0, -1.0, 101.0],  # above the default τ
    "ctrnn.noise": [-0.1],
    "dale": [0.0, 0.1, 0.9, 1.0, -0.5, 1.5],
    "density": [0.0, -0.5, 1.5],
    "seed": [],
    "connections": [3, "x", jnp.ones((H, H)), jnp.ones((H, H + 1), bool)],
    "spectral_radius": [0.0, -1.0],
    "leak": [0.0, 1.5],
    "input_scaling": [None, "x", -1.0, math.inf, (1.0, 2.0)],
    "bias_scaling": [-1.0],
    **dict.fromkeys(
        ("cell", "cells", "forward", "backward", "inner"),
        (
            None,
            3,
            jnp.tanh,
        ),
    ),
    **dict.fromkeys(
        ("model", "layer", "stack.members", "branch.members"),
        (
            None,
            3,
            jnp.tanh,
        ),
    ),
    "load.model": [3, jnp.tanh],
    "plan": ["fast", 3, None],
    "scan.checkpoint": ["x", 0, -1, 2.5, None],
    "parallel.checkpoint": ["x", 0, -1, 2.5],
    "params": [None, *_TREES, jax.tree.map(lambda a: a[:2], PARAMS)],
    "training.init_best.params": ["x"],
    "training.update_best.params": [None, *_TREES],
    "xs": [*_NOT_FLOATS, jnp.ones(T), jnp.ones((T, B, I + 1))],
    "x": [*_NOT_FLOATS, jnp.ones((B, I + 1)), jnp.ones(())],
    "carry": [*_TREES, jnp.ones((7, H)), jnp.ones((B, H), int)],
    "gradients.find_fixed_points.starts": [None, *_TREES, jnp.ones((B, H + 1)), jnp.ones((B, H), int)],
    "merge": ["add", 3, None],
    "run": ["x", None, 3],
    "sequences": [None, 3, [], [np.ones((3, I)), np.ones((2, I + 1))], ["ab"]],
    "ys": [None, "x", 3.0, jnp.ones(())],
    "losses": [None, "x", jnp.ones(())],
    "lengths": ["x", 3.5, np.array([1.5, 2.0]), np.array([1, 2, 3])],
    "training.bucketed.lengths": [None, "x", [], [1.5], [-1], [[1]]],
    "names": [3, (), ("",), [3]],
    "weight_drop.names": [None],
    "masked_weights.mask": ["x"],
    "mask": ["x", jnp.ones((T, B)), jnp.ones((T + 1, B), bool)],
    "resets": ["x", jnp.ones((T, B)), jnp.ones((T + 2, B), bool)],
    "key": ["x", 3, jax.random.split(KEY)],
    "Loop.init.key": ["x", 3, None, jax.random.split(KEY)],
    "Loop.run.steps": [2**30],  # of two batches each
    "Loop.run.state": [None, 3, "x", (STATE,)],
    "Loop.step.state": [None, 3, "x", (STATE,)],
    "Loop.evaluate.params": [],  # of the user's own loss
    "batch_at": [None, 3, "x"],
    "plotting.gates.sequence": [B],
    "init.key": ["x", 3, None, jax.random.split(KEY)],
    "start": ["x", 1.5, None, jnp.arange(B)],
    "batch_shape": [3, "x", None, (1.5,), (-1,)],
    "spec": [None, 3, "gru", {}, {"kind": "gruu"}, {"kind": "gru", "options": {"hidden": 3}}],
    "path": [None, 3],
    "load.name": [3],
    "load.path": [None, 3, "missing.safetensors"],
    "metadata": [3, "x", {3: "x"}],
    "loss": [None, 3, lambda carry, ys: ys],
    "online.loss": [None, 3],
    "rule": ["rtrll", "snap0", None, 3],
    "window": [],
    "online.window": [3],  # of "tbptt" alone
    "masks": _TREES,
    "feedback": ["randm", "random", None, 3, jnp.ones((2, 2), int)],  # of other rules none
    "rules": [None, 3, "rtrl", (), {}, {"a": {"windo": 3}}],
    "gradients.agreement.targets": [None, "x", 3, jnp.ones((T, B)), jnp.ones((T, B, H + 1))],
    "gradients.agreement.loss": [None, 3, lambda y, target: y],
    "found": [None, 3],
    "training.loop.loss": [None, 3],
    "norm": [None, "x", jnp.ones(())],
    "matrix": [None, "x", jnp.ones(3), jnp.ones((2, 3))],
    "devices.shard_batch.tree": ["x", jnp.ones(3)],
    "devices.replicate.tree": ["x"],
    "mesh": [3, "x"],
    "batch_axis": [None, 3, -1, "x", 1.5],
    "axes": [3, "x", ("batch", "batch")],
    "devices.batch_mesh.members": [0, -1, 1.5, "some"],
    "devices.stack_members.members": [None, 3, [], [PARAMS, CARRY]],
    "function": [None, 3],
    **dict.fromkeys(
        ("training.loop.init", "optimizer", "put"),
        (
            None,
            3,
        ),
    ),
    "values": [None, "x", jnp.ones((2, 3))],
    "best": [None, 3],
    "value": [None, "x", jnp.ones(3)],
    "pad.value": ["x", None, jnp.ones(3)],
    "step": [None, "x", 1.5],
    "block": [None, 3],
    "state": [None, "x"],
    "records": [3, "x"],
    "labels": [3, [{"seed": 0}, {"seed": 1}], "x", [3]],
    "training.fit.model": [3, jnp.tanh],
    "training.fit.checkpoint": [3],
    **dict.fromkeys(
        ("stop_when", "on_block"),
        (
            3,
            "x",
        ),
    ),
    "config": [3, "x", {"a": jnp.tanh}],
    "buckets": [0, -1, 1.5, "x", [], [0], [1, 1.5], [2]],
    "batches": [None, 3],
    "data": [None, 3, [np.ones((3, I))]],
    "process": [3, (0,), (2, 2), (-1, 2), "ab"],
    "items": [None, 3],
    "below": ["x", 0, 1.5],
    "f": ["tanhh", 3, None],
    "draw": [None, 3],
    "times": [None, "x", 1.5],
    "dense.activation": ["tanhh", 3, ("tanh",)],
    **dict.fromkeys(
        ("flows", "curves", "spectra", "gates", "points"),
        (
            None,
            3,
        ),
    ),
    "logs": [None, "x", 3.0],
    "plotting.learning_curves.steps": ["x", [1]],
    "baselines": [3, {"chance": "x"}],
    "plotting.fixed_points.analysis": [3],
    "states": ["x", jnp.ones(3)],
    # ranges
    **dict.fromkeys(("rate", "input_rate", "c_rate"), (-0.1, 1.0, 1.5)),
    **dict.fromkeys(("leaky.rate", "leaky.keep"), ()),
    **dict.fromkeys(("max_value", "max_norm", "epsilon"), (-1.0, 0.0)),
    **dict.fromkeys(("std", "density"), (-1.0,)),
    **dict.fromkeys(("tolerance", "outliers", "learning_rate"), (-1.0, 0.0)),
    "duplicates": [-1.0],
    "recurrent_max": [-1.0, 0.0],
    "initial_min": [-2.0, 1.0],
    "antisymmetric_rnn.gamma": [-1.0],
    "lem.dt": [-1.0, 0.0],
    "T_max": [2, -1.0],
    **dict.fromkeys(("reset", "keep", "peephole_lstm.peephole", "method", "how", "nonfinite"), ("some",)),
    "yscale": ["some"],
    **dict.fromkeys(("candidate", "diagonal", "discretization"), ("some",)),
    **dict.fromkeys(("r_min", "step_min"), (-2.0, 1.0)),
    **dict.fromkeys(("form", "pooling"), ("some",)),
    "sru.activation": ["tanhh", 3, ("tanh",)],
    **dict.fromkeys(("lstm.layer_norm", "gru.layer_norm"), ("some", 3, True)),
    **dict.fromkeys(("lstm.heads", "gru.heads"), (3,)),
    "r_max": [-2.0, 1.5],
    "max_phase": [0.0, 7.0],
    "step_max": [0.0],
    "state_size": [],
    "s5.state_size": [5],
    **dict.fromkeys(("s5.blocks", "rg_lru.blocks", "slstm.heads", "mlstm.heads"), (3,)),
    "forget_gate": ["some"],
    **dict.fromkeys(("s5.blocks", "rg_lru.blocks"), (3,)),
    "ridge": [None, "x", True, -1.0, math.inf, (), (1.0, -1.0), jnp.ones((1, 1))],
    "fit_readout.ys": [None, "x", 3.0, jnp.ones(()), jnp.ones((T, B)), jnp.ones((T + 1, B, H))],
    "fit_readout.key": ["x", 3, jax.random.split(KEY)],
    "kind": ["gruu"],
    "recurrent_dropout.kind": ["gruu", None, 3],
    "query": [None, "x", X[0], jnp.ones((B, I + 1)), jnp.ones((B, I), int)],
    "memory": [None, "x", jnp.ones(I), jnp.ones((T, B, I + 1)), jnp.ones((T, B, I), int)],
    "attend.values": ["x", jnp.ones((T + 1, B, I)), jnp.ones((T, B, I), int)],
    "attention": [None, 3, jnp.tanh],
    **dict.fromkeys(("attention.scored.init", "prepare", "score"), (None, 3)),
    "decoder.form": ["keras", None],
    "normalisation": ["hardmax", None],
    # the closed loop, of a GRU whose four outputs are logits
    "first": ["x", jnp.ones(B), jnp.ones((7, B), int)],
    "sample": ["topk", 3, None],
    "stop": ["x", 1.5, H, -1],
    "pad": ["x", 1.5],
    "next_input": [3, "x"],
    "prefix": ["x", 3, jnp.ones((T, B)), jnp.ones((T, B + 1), int)],
    "targets": [None, "x", 3, jnp.ones((T, B))],
    "tokens": [None, "x", jnp.ones((T, B)), jnp.ones((), int)],
    "noise_key": ["x", 3, jax.random.split(KEY)],
    "width": [],
    "beam_search.width": [H**3 + 1],
    "n_best": [3],
    "length_penalty": ["x", None, jnp.ones(2)],
    **dict.fromkeys(("temperature", "p"), (0.0, -1.0)),
    "decoding.scheduled_sampling.rate": ["x", -0.1, 1.5, jnp.ones(2)],
    "logits": [None, "x", jnp.ones((T, B, H), int), jnp.ones(T)],
    "decoding.ctc_loss.labels": [None, "x", 3, jnp.ones((T, B))],
    "label_lengths": ["x", 3.5, np.array([1, 2, 3])],
    "blank": [H],
}
FREE = {
    "options": "those of apply, which have rows of their own",
    "noise": "what the cell's own ``noise`` drew",
    "tree": "any tree of arrays",
    "batch": "what the user's own loss reads",
}
ALSO_ZERO = ("Loop.run.steps",)  # beside FROM_ZERO
_BY_ANNOTATION = {
    "int": ["x", 1.5, True, [3]],
    "float": ["x", True, [0.5], math.nan, math.inf],
    "bool": ["yes", 1, 0.0],
    "str": [3, True],
}


def bad_values(
    place: str,
    parameter: inspect.Parameter,
    bad: Mapping[str, Sequence[Any]] = BAD,
    free: Mapping[str, str] = FREE,
    page: str = "tests/bad_values.py",
) -> list[Any]:
    """What the parameter must refuse; an error that names the line to add where nobody has said it."""
    name, written = parameter.name, str(parameter.annotation)
    plain = written.removesuffix(" | None")
    values: list[Any] = []
    if name in ("dtype", "param_dtype"):
        values = [jnp.int8, "float12", 3, jnp.complex64, *([None] if name == "param_dtype" else [])]
    elif plain in _BY_ANNOTATION:
        values = [*_BY_ANNOTATION[plain], *([] if written != plain else [None])]
        if plain == "int":
            values += [-1] if name in FROM_ZERO else [-1, 2**31]
            values += [0] if name not in FROM_ZERO and f"{place}.{name}" not in ALSO_ZERO else []
        if name in ANY_NUMBER:
            values = ["x", True, [0.5], None]
    for key in (f"{place}.{name}", name):
        if key in bad:
            return [*values, *bad[key]]
    if not values and name not in free:
        raise LookupError(f"{page}: say in BAD what {name!r} of {place} must refuse: {written}")
    return values
