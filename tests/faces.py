"""Every public function with a call that is all right; what its parameters refuse: bad_values.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxrnn as jr
from jaxrnn import training

T, B, I, H = 5, 2, 3, 4
KEY = jax.random.key(0)
GATED = ("elman", "lstm", "gru", "peephole_lstm", "cifg_lstm", "mgu", "ugrnn", "indrnn", "antisymmetric_rnn", "lem")
EXPONENTIAL = ("slstm", "mlstm")
LINEAR = ("lru", "s5", "min_gru", "min_lstm", "rg_lru", "linear_rnn", "sru", "qrnn")
GRU = jr.gru(I, H)
CTRNN = jr.ctrnn(I, H)
LAYER = jr.scan(GRU)
PARAMS = GRU.init(KEY)
CARRY = GRU.initial_carry(PARAMS, (B,))
XS, X, YS = jnp.ones((T, B, I)), jnp.ones((B, I)), jnp.ones((T, B, H))
LENGTHS = np.array([5, 2])
AXES = Figure().subplots()
POINTS = jr.gradients.FixedPoints(jnp.ones((2, H)), jnp.ones(2), jnp.ones(2, int), jnp.arange(2))
AGREEMENT = jr.gradients.Agreement(
    *(("rtrl",), ("W",)),
    *(jr.gradients.Comparison(*[np.ones(shape)] * 4) for shape in (1, (1, 1), (1, T))),
    1,
)
SEQUENCES = [np.ones((3, I)), np.ones((2, I))]


def loss(carry, ys):
    return ys.sum()


def one_hot(token):
    return jax.nn.one_hot(token, I)


TOKENS = jnp.ones((T, B), int)
LOOP = {"cell": GRU, "params": PARAMS, "carry": CARRY, "first": TOKENS[0], "next_input": one_hot}
LEARN = training.loop(lambda key: jnp.ones(2), lambda w, batch, key: w @ w, optax.sgd(0.1), accumulate=2)
STATE = training.steps.TrainState(jnp.ones(2), (), KEY, jnp.asarray(0), jnp.asarray(0))


def block(state):
    return state, {"loss": state.sum()}, {}


# Arguments of calls that are all right, by the function's place: those without a default.
CALLS: dict[str, dict[str, Any]] = {
    "Cell.init": {"key": KEY},
    "Cell.initial_carry": {"params": PARAMS},
    "Cell.step": {"params": PARAMS, "carry": CARRY, "x": X},
    "Cell.gates": {"params": PARAMS, "carry": CARRY, "x": X},
    "Layer.init": {"key": KEY},
    "Layer.initial_carry": {"params": PARAMS},
    "Layer.apply": {"params": PARAMS, "xs": XS},
    "Loop.init": {"key": KEY},
    "Loop.step": {"state": STATE, "batch": 0.0},
    "Loop.run": {"state": STATE, "batch_at": lambda key, n: 0.0, "steps": 2},
    "Loop.evaluate": {"params": jnp.ones(2), "batch": 0.0},
    **{kind: {"input_size": I, "hidden_size": H} for kind in (*GATED, *LINEAR, *EXPONENTIAL)},
    **{kind: {"input_size": I, "hidden_size": H, "spatial_shape": (5,)} for kind in ("conv_lstm", "conv_gru")},
    "ctrnn": {"input_size": I, "hidden_size": H},
    "echo_state": {"input_size": I, "hidden_size": H},
    "readout": {"input_size": I, "output_size": H},
    "dense": {"input_size": I, "output_size": H},
    "pointwise": {"f": "tanh"},
    "dropout": {"rate": 0.5},
    "layer_norm": {"input_size": I},
    "embedding": {"vocabulary_size": 9, "output_size": I},
    "recurrent_dropout": {"cell": GRU, "rate": 0.5},
    "zoneout": {"cell": GRU, "rate": 0.5},
    "leaky": {"cell": GRU, "rate": 0.5},
    "normalized": {"cell": GRU},
    "clip_state": {"cell": GRU, "max_value": 1.0},
    "cotangent_clip": {"cell": GRU, "max_norm": 1.0},
    "weight_drop": {"cell": GRU, "rate": 0.5},
    "weight_noise": {"cell": GRU, "std": 0.5},
    "weight_norm": {"cell": GRU},
    "spectral_norm": {"cell": GRU},
    "masked_weights": {"cell": GRU},
    "noisy_state": {"cell": GRU, "std": 0.5},
    "dilated": {"cell": GRU, "dilation": 2},
    "every": {"cell": GRU, "period": 2},
    "scan": {"cell": GRU},
    "parallel": {"cell": GRU},
    "convergence": {"layer": LAYER, "params": PARAMS, "xs": XS},
    "explain": {"layer": LAYER, "params": PARAMS, "xs": XS},
    "planning.explain": {"layer": LAYER, "params": PARAMS, "xs": XS},
    "forecast_convergence": {"cell": GRU, "params": PARAMS, "xs": XS},
    "tbptt": {"model": LAYER, "window": 2},
    "stream": {"cell": GRU},
    "online": {"cell": GRU, "loss": loss},
    "gates": {"cell": GRU, "params": PARAMS, "carry": CARRY, "x": X},
    "trace_gates": {"cell": GRU, "params": PARAMS, "xs": XS},
    "generate": {**LOOP, "steps": 3, "prefix": TOKENS},
    "beam_search": {**LOOP, "steps": 3, "width": 2, "prefix": TOKENS},
    "log_likelihood": {"layer": LAYER, "params": PARAMS, "tokens": TOKENS, "next_input": one_hot},
    "stack": {"members": (GRU,)},
    "chain": {"cells": (GRU,)},
    "bidirectional": {"forward": GRU, "backward": GRU},
    "branch": {"members": (GRU,)},
    "fit_readout": {"layer": LAYER, "params": PARAMS, "xs": XS, "ys": YS},
    "check_cell": {"cell": GRU, "params": PARAMS, "xs": XS},
    "draw_each_step": {"draw": jax.random.normal, "key": KEY, "times": jnp.arange(3)},
    "residual": {"inner": jr.gru(I, I)},
    "pad": {"sequences": SEQUENCES},
    "last": {"ys": YS},
    "mean_pool": {"ys": YS},
    "max_pool": {"ys": YS},
    "masked_mean": {"losses": YS[..., 0]},
    "attend": {"query": X, "memory": XS},
    "attention_pool": {"input_size": I},
    "decoder": {"cell": jr.gru(I + H, H), "attention": jr.attention.dot(H)},
    "attention.dot": {"size": H},
    "attention.general": {"query_size": H, "memory_size": I},
    "attention.additive": {"query_size": H, "memory_size": I, "hidden_size": 5},
    "attention.location_sensitive": {"query_size": H, "memory_size": I, "hidden_size": 5},
    "attention.scored": {"init": jnp.sin, "prepare": jnp.sin, "score": jnp.sin},
    "build": {"spec": GRU.spec},
    "save": {"path": "model.safetensors", "model": GRU, "params": PARAMS},
    "load": {"path": "saved.safetensors"},
    "cells.gate_order": {"kind": "gru"},
    "cells.effective_weights": {"cell": CTRNN, "params": CTRNN.init(KEY)},
    "gradients.gradient_flow": {"model": LAYER, "params": PARAMS, "xs": XS, "loss": loss},
    "gradients.norm_by_lag": {"norm": jnp.ones((T, B))},
    "gradients.bptt_contributions": {"model": LAYER, "params": PARAMS, "xs": XS, "loss": loss},
    "gradients.diagnose": {"cell": GRU, "params": PARAMS, "xs": XS},
    "gradients.classify_exponent": {"exponent": 0.1, "steps": 5},
    "gradients.lyapunov_spectrum": {"cell": GRU, "params": PARAMS, "xs": XS},
    "gradients.step_jacobian": {"cell": GRU, "params": PARAMS, "carry": CARRY, "x": X},
    "gradients.spectral_radius": {"matrix": jnp.eye(3)},
    "gradients.log_singular_values": {"cell": GRU, "params": PARAMS, "xs": XS},
    "gradients.find_fixed_points": {"cell": GRU, "params": PARAMS, "starts": CARRY, "x": X[0]},
    "gradients.linear_analysis": {"cell": GRU, "params": PARAMS, "carry": CARRY, "x": X},
    "gradients.jacobian_penalty": {"cell": GRU, "params": PARAMS, "xs": XS, "loss": loss},
    "gradients.agreement": {"cell": GRU, "params": PARAMS, "xs": XS, "targets": YS, "key": KEY},
    "decoding.greedy": {},
    "decoding.temperature": {},
    "decoding.top_k": {},
    "decoding.top_p": {},
    "decoding.wu_2016": {},
    "decoding.perplexity": {"layer": LAYER, "params": PARAMS, "tokens": TOKENS, "next_input": one_hot},
    "decoding.scheduled_sampling": {
        **{name: value for name, value in LOOP.items() if name != "carry"},
        "targets": TOKENS,
        "rate": 0.5,
        "key": KEY,
    },
    "decoding.ctc_loss": {"logits": YS, "labels": TOKENS},
    "decoding.ctc_decode": {"logits": YS},
    "devices.use_cpu_devices": {"n": 2},
    "devices.batch_mesh": {},
    "devices.shard_batch": {"tree": XS, "mesh": jr.devices.batch_mesh(1)},
    "devices.replicate": {"tree": XS, "mesh": jr.devices.batch_mesh(1)},
    "devices.ensemble": {"function": jnp.sin},
    "devices.stack_members": {"members": [PARAMS, PARAMS]},
    "devices.join_processes": {},
    "training.loop": {"init": GRU.init, "loss": lambda *args: (0.0, {}), "optimizer": optax.sgd(0.1)},
    "training.first_nonfinite": {"values": jnp.ones(3)},
    "training.init_best": {"params": PARAMS},
    "training.update_best": {
        "best": training.init_best(PARAMS),
        "value": jnp.ones(()),
        "step": jnp.asarray(1),
        "params": PARAMS,
    },
    "training.fit": {"block": block, "state": jnp.ones(3), "steps": 2, "block_steps": 1},
    "training.patience": {"measure": "loss", "blocks": 2},
    "training.fetch": {"tree": XS},
    "training.bucketed": {"lengths": [3, 2], "batch_size": 1, "seed": 0},
    "training.padded": {"batches": training.bucketed([3, 2], batch_size=1, seed=0), "data": SEQUENCES},
    "training.prefetch": {"items": [1, 2]},
    "plotting.gradient_norms": {"flows": {"gru": jnp.ones((T, B))}},
    "plotting.draw_gradient_norms": {"axes": AXES, "flows": {"gru": jnp.ones((T, B))}},
    "plotting.singular_values": {"logs": jnp.ones((T, H))},
    "plotting.gates": {"gates": jr.cells.GRUGates(*[YS] * 4)},
    "plotting.learning_curves": {"curves": {"gru": np.ones(3)}},
    "plotting.draw_learning_curves": {
        "axes": AXES,
        "curves": {"gru": (None, np.ones(3))},
        "ylabel": "loss",
        "yscale": "log",
        "baselines": None,
    },
    "plotting.eigenvalues": {"spectra": {"gru": np.ones(3)}},
    "plotting.lyapunov": {"spectra": {}},
    "plotting.fixed_points": {"points": POINTS},
    "plotting.agreement": {"found": AGREEMENT},
}


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function by its place, and those of a Cell and a Layer."""
    for place in CALLS:
        face, _, name = place.rpartition(".")
        owner = {"": jr, "Cell": GRU, "Layer": LAYER, "Loop": LEARN}.get(face) or getattr(jr, face)
        yield place, getattr(owner, name)
