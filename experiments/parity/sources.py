"""The models of the other libraries, each run in its own form, with random weights, biases and initial states."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from experiments.parity.compare import B, H, I, Outcome, Source, T, by_jax
from jaxrnn._base import flatten

Draw = Callable[..., np.ndarray]
Make = Callable[[Draw], Source]


def in_words(layers: int, directions: int, *options: str) -> str:
    words = [f"{layers} layers"] * (layers > 1) + ["bidirectional"] * (directions > 1) + [o for o in options if o]
    return ", ".join(words)


# ---- PyTorch -------------------------------------------------------------------------------------


def torch_source(kind: str, layers: int, directions: int, options: dict[str, Any], draw: Draw) -> Source:
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    from jaxrnn.interop.torch import from_torch

    dtype = getattr(torch, draw(1).dtype.name)
    net = getattr(torch.nn, kind)(I, H, layers, bidirectional=directions == 2, **options).to(dtype)
    names = list(net.state_dict())
    weights = [draw(*w.shape) for w in net.state_dict().values()]

    def loaded(weights):
        net.load_state_dict({name: torch.tensor(w) for name, w in zip(names, weights, strict=True)})
        return net

    def run(weights, xs, carry, lengths, loss):
        _, w_carry, w_ys = loss
        leaves, treedef = flatten(carry)
        parts = 2 if kind == "LSTM" else 1  # our leaves come layer by layer, direction by direction: h, c, h, c …
        states = [torch.tensor(np.stack(leaves[n::parts]), requires_grad=True) for n in range(parts)]
        inputs, module = torch.tensor(xs, requires_grad=True), loaded(weights)
        module.zero_grad()
        packed = pack_padded_sequence(inputs, torch.tensor(lengths), enforce_sorted=False)
        packed, end = module(packed, tuple(states) if parts == 2 else states[0])
        ys, _ = pad_packed_sequence(packed, total_length=T)
        ends = list(end) if parts == 2 else [end]
        w_ends = [torch.tensor(np.stack(jax.tree.leaves(w_carry)[n::parts])) for n in range(parts)]
        value = (ys * torch.tensor(w_ys)).sum()
        for a, w in zip(ends, w_ends, strict=True):
            value = value + (a * w).sum()
        value.backward()

        def as_ours(states):
            rows = [list(s) for s in states]
            return treedef.unflatten([a.numpy() for of_run in zip(*rows, strict=True) for a in of_run])

        return Outcome(
            ys.detach().numpy(),
            as_ours([s.detach() for s in ends]),
            inputs.grad.numpy(),
            as_ours([s.grad for s in states]),
            [p.grad.numpy().copy() for p in module.parameters()],
        )

    said = [f"{name}={value}" for name, value in options.items()]
    return Source(
        "PyTorch", f"nn.{kind}", in_words(layers, directions, *said), weights, lambda w: from_torch(loaded(w)), run
    )


# ---- Keras ---------------------------------------------------------------------------------------


def keras_source(cell: str, layers: int, merge: str | None, options: dict[str, Any], draw: Draw) -> Source:
    import keras

    from jaxrnn.interop.keras import from_keras

    dtype = draw(1).dtype.name

    def layer():
        own = getattr(keras.layers, cell)(H, return_sequences=True, return_state=True, dtype=dtype, **options)
        return own if merge is None else keras.layers.Bidirectional(own, merge_mode=merge, dtype=dtype)

    members = [layer() for _ in range(layers)]
    size = I
    for member in members:
        member.build((B, T, size))
        size = H * (2 if merge == "concat" else 1)
    counts = [len(member.get_weights()) for member in members]
    weights = [draw(*w.shape) for member in members for w in member.get_weights()]

    def tanh_of_cells(tanh):
        """On JAX Keras' own tanh rounds to float32, whatever the dtype: JAX's takes its place while Keras runs."""
        for member in members:
            runs = [member] if merge is None else [member.forward_layer, member.backward_layer]
            for run in runs:
                if run.cell.activation in (keras.activations.tanh, jnp.tanh):
                    run.cell.activation = tanh

    def read(weights):
        rest = iter(weights)
        tanh_of_cells(keras.activations.tanh)
        for member, count in zip(members, counts, strict=True):
            member.set_weights([next(rest) for _ in range(count)])
        return from_keras(members[0] if layers == 1 else members)

    def run(weights, xs, carry, lengths):
        tanh_of_cells(jnp.tanh if dtype == "float64" else keras.activations.tanh)
        leaves, treedef = flatten(carry)
        rest, states, x, ends = iter(weights), iter(leaves), jnp.swapaxes(xs, 0, 1), []
        of_each = len(leaves) // layers
        mask = jnp.arange(T) < jnp.asarray(lengths)[:, None]
        for member, count in zip(members, counts, strict=True):
            own = [next(states) for _ in range(of_each)]
            variables = [next(rest) for _ in range(count)], [v.value for v in member.non_trainable_variables]
            (x, *end), _ = member.stateless_call(*variables, x, initial_state=own, mask=mask)
            ends += end
        return treedef.unflatten(ends), jnp.swapaxes(x, 0, 1)

    said = [f"{name}={value}" for name, value in options.items()] + [f"merge_mode={merge}"] * (merge is not None)
    return Source("Keras", cell, in_words(layers, 1 + (merge is not None), *said), weights, read, by_jax(run))


# ---- Flax ----------------------------------------------------------------------------------------


def swapped(carry: Any) -> Any:
    """Our carry as Flax's, whose LSTM's is (c, h), and the same back."""
    if isinstance(carry, jr.BiCarry):
        return tuple(map(swapped, carry))
    return (carry.c, carry.h) if isinstance(carry, jr.LSTMCarry) else carry


def back(end: Any, like: Any) -> Any:
    if isinstance(like, jr.BiCarry):
        return jr.BiCarry(*map(back, end, like))
    return jr.LSTMCarry(h=end[1], c=end[0]) if isinstance(like, jr.LSTMCarry) else end


def linen_source(cell: str, directions: int, draw: Draw) -> Source:
    from flax import linen as nn

    from jaxrnn.interop.flax import from_linen

    dtype = draw(1).dtype
    one = lambda: nn.RNN(getattr(nn, cell)(H, param_dtype=dtype), time_major=True, return_carry=True)  # noqa: E731
    net = one() if directions == 1 else nn.Bidirectional(one(), one(), time_major=True, return_carry=True)
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((T, B, I), dtype))
    leaves, treedef = flatten(like)

    def run(weights, xs, carry, lengths):
        own = swapped(carry)
        end, ys = net.apply(treedef.unflatten(weights), xs, initial_carry=own, seq_lengths=jnp.asarray(lengths))
        return back(end, carry), ys

    weights = [draw(*a.shape) for a in leaves]
    read = lambda weights: from_linen(net, treedef.unflatten(weights))  # noqa: E731
    return Source("Flax linen", cell, in_words(1, directions), weights, read, by_jax(run))


def nnx_source(cell: str, directions: int, draw: Draw) -> Source:
    from flax import nnx

    from jaxrnn.interop.flax import from_nnx

    rngs, dtype = nnx.Rngs(0), draw(1).dtype

    def one(**options):
        return nnx.RNN(getattr(nnx, cell)(I, H, dtype=dtype, param_dtype=dtype, rngs=rngs), rngs=rngs, **options)

    options: dict[str, Any] = {"time_major": True, "return_carry": True}
    net = one(**options) if directions == 1 else nnx.Bidirectional(one(), one(), rngs=rngs, **options)
    graph, params, others = nnx.split(net, nnx.Param, ...)
    leaves, treedef = flatten(params)

    def run(weights, xs, carry, lengths):
        module = nnx.merge(graph, treedef.unflatten(weights), others)
        end, ys = module(xs, initial_carry=swapped(carry), seq_lengths=jnp.asarray(lengths))
        return back(end, carry), ys

    weights = [draw(*a.shape) for a in leaves]
    read = lambda weights: from_nnx(nnx.merge(graph, treedef.unflatten([*map(jnp.asarray, weights)]), others))  # noqa: E731
    return Source("Flax nnx", cell, in_words(1, directions), weights, read, by_jax(run))


# ---- Haiku and Equinox ---------------------------------------------------------------------------


def haiku_source(core: str, draw: Draw) -> Source:
    import haiku as hk

    from jaxrnn.interop.haiku import from_haiku

    def unroll(xs, state):
        return hk.dynamic_unroll(getattr(hk, core)(H), xs, state)

    def state_of(carry):
        return hk.LSTMState(carry.h, carry.c) if core == "LSTM" else carry

    net = hk.without_apply_rng(hk.transform(unroll))
    zeros = jnp.zeros((B, H), draw(1).dtype)
    like = jax.eval_shape(
        net.init,
        jax.random.key(0),
        jnp.zeros((T, B, I), zeros.dtype),
        hk.LSTMState(zeros, zeros) if core == "LSTM" else zeros,
    )
    leaves, treedef = flatten(like)

    def run(weights, xs, carry, lengths):
        ys, end = net.apply(treedef.unflatten(weights), xs, state_of(carry))
        return jr.LSTMCarry(end.hidden, end.cell) if core == "LSTM" else end, ys

    weights = [draw(*a.shape) for a in leaves]
    read = lambda weights: from_haiku(core, treedef.unflatten([*map(jnp.asarray, weights)]))  # noqa: E731
    return Source("Haiku", core, "", weights, read, by_jax(run), lengths=False)


def equinox_source(cell: str, draw: Draw) -> Source:
    import equinox as eqx

    from jaxrnn.interop.equinox import from_equinox

    net = getattr(eqx.nn, cell)(I, H, key=jax.random.key(0))
    arrays, rest = eqx.partition(net, eqx.is_array)
    leaves, treedef = flatten(arrays)

    def run(weights, xs, carry, lengths):
        step = eqx.combine(treedef.unflatten(weights), rest)

        def body(state, x):
            new = jax.vmap(step)(x, tuple(state) if cell == "LSTMCell" else state)
            return (jr.LSTMCarry(*new), new[0]) if cell == "LSTMCell" else (new, new)

        return jax.lax.scan(body, carry, xs)

    weights = [draw(*a.shape) for a in leaves]
    read = lambda weights: from_equinox(eqx.combine(treedef.unflatten([*map(jnp.asarray, weights)]), rest))  # noqa: E731
    return Source("Equinox", cell, "", weights, read, by_jax(run), lengths=False)


# ---- ONNX ----------------------------------------------------------------------------------------


def onnx_source(operator: str, direction: str, options: dict[str, Any], peepholes: bool, draw: Draw) -> Source:
    """The operator in onnxruntime, whose kernels are float32."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from jaxrnn.interop import onnx as interop

    G, D = {"RNN": 1, "LSTM": 4, "GRU": 3}[operator], 1 + (direction == "bidirectional")
    weights = [draw(D, G * H, I), draw(D, G * H, H), draw(D, 2 * G * H)]
    weights += [draw(D, 3 * H)] * peepholes
    states = ["initial_h", "initial_c"] if operator == "LSTM" else ["initial_h"]
    ends = ["Y_h", "Y_c"][: len(states)]

    def model(weights):
        stored = dict(zip("WRBP", weights, strict=False))
        names = ["X", "W", "R", "B", "sequence_lens", *states]
        names += ["P"] if peepholes else []
        node = helper.make_node(operator, names, ["Y", *ends], hidden_size=H, direction=direction, **options)
        kind = TensorProto.FLOAT
        inputs = [helper.make_tensor_value_info("X", kind, ["T", "B", I])]
        inputs += [helper.make_tensor_value_info("sequence_lens", TensorProto.INT32, ["B"])]
        inputs += [helper.make_tensor_value_info(name, kind, [D, "B", H]) for name in states]
        outputs = [helper.make_tensor_value_info("Y", kind, ["T", D, "B", H])]
        outputs += [helper.make_tensor_value_info(name, kind, [D, "B", H]) for name in ends]
        initializers = [numpy_helper.from_array(a, name) for name, a in stored.items()]
        graph = helper.make_graph([node], "graph", inputs, outputs, initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)

    def run(weights, xs, carry, lengths, loss):
        leaves, treedef = flatten(carry)
        parts = len(states)
        own = {name: np.stack(leaves[n::parts]) for n, name in enumerate(states)}
        onnxruntime.set_default_logger_severity(4)
        session = onnxruntime.InferenceSession(
            onnx.ModelProto.SerializeToString(model(weights)), providers=["CPUExecutionProvider"]
        )
        Y, *end = session.run(None, {"X": xs, "sequence_lens": lengths.astype(np.int32), **own})
        ys = np.moveaxis(Y, 1, 2).reshape(T, B, D * H)
        return Outcome(ys, treedef.unflatten([a[d] for d in range(D) for a in end]))

    said = [f"{name}={value}" for name, value in options.items()] + ["peepholes"] * peepholes
    words = in_words(1, 1, *([direction] * (direction != "forward")), *said)
    return Source("ONNX", operator, words, weights, lambda w: interop.load(model(w)), run)


# ---- all of them ---------------------------------------------------------------------------------


def sources() -> Iterator[tuple[str, Make]]:
    """``(library, function of a draw that makes the source)``, in the order of the table."""

    def entries():
        torch_options: list[tuple[str, dict[str, Any]]] = [
            ("RNN", {}),
            ("RNN", {"nonlinearity": "relu"}),
            ("LSTM", {}),
            ("LSTM", {"proj_size": 2}),
            ("GRU", {}),
        ]
        for kind, options in torch_options:
            for layers, directions in ((1, 1), (1, 2), (2, 2)):
                yield "torch", torch_source, kind, layers, directions, options
        yield "torch", torch_source, "LSTM", 1, 1, {"bias": False}
        yield "torch", torch_source, "GRU", 1, 1, {"bias": False}
        for cell, options in (("SimpleRNN", {}), ("LSTM", {}), ("GRU", {}), ("GRU", {"reset_after": False})):
            for layers, merge in ((1, None), (1, "concat"), (2, "sum")):
                yield "keras", keras_source, cell, layers, merge, options
        for merge in ("ave", "mul"):
            yield "keras", keras_source, "LSTM", 1, merge, {}
        unusual = {"activation": "relu", "recurrent_activation": "hard_sigmoid", "use_bias": False}
        for cell in ("LSTM", "GRU"):
            yield "keras", keras_source, cell, 1, None, unusual
        for directions in (1, 2):
            for cell in ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell", "MGUCell"):
                yield "linen", linen_source, cell, directions
            for cell in ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell"):
                yield "nnx", nnx_source, cell, directions
        for core in ("VanillaRNN", "LSTM", "GRU"):
            yield "haiku", haiku_source, core
        for cell in ("LSTMCell", "GRUCell"):
            yield "equinox", equinox_source, cell
        for direction in ("forward", "reverse", "bidirectional"):
            for operator, options, peepholes in (
                ("RNN", {}, False),
                ("LSTM", {}, False),
                ("LSTM", {}, True),
                ("LSTM", {"input_forget": 1}, False),
                ("GRU", {}, False),
                ("GRU", {"linear_before_reset": 1}, False),
            ):
                yield "onnx", onnx_source, operator, direction, options, peepholes

    for library, make, *arguments in entries():
        yield library, functools.partial(make, *arguments)
