"""Trees as files give them back, into the converters of Flax, Haiku and Equinox: other keys, boxes, narrow dtypes."""

import os
import re

import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.interop.conversion import in_dicts
from tests.interop.comparing import H, I, assert_same, drawn, drawn_params
from tests.interop.through_files import flattened, msgpack, orbax, orbax_pytree

os.environ.setdefault("KERAS_BACKEND", "jax")

pytest.importorskip("orbax.checkpoint")


def linen_grus():
    """Two directions in linen, and their variables."""
    from flax import linen as nn

    module = nn.Bidirectional(nn.RNN(nn.GRUCell(H)), nn.RNN(nn.GRUCell(H)))
    return module, drawn(jax.eval_shape(module.init, jax.random.key(0), jnp.ones((2, 3, I))), "float32")


def nnx_grus():
    """Two directions in nnx, as shapes, and their weights as a State."""
    from flax import nnx

    def made():
        cells = (nnx.GRUCell(I, H, rngs=nnx.Rngs(0)) for _ in range(2))
        return nnx.Bidirectional(*map(nnx.RNN, cells))

    module = nnx.eval_shape(made)
    return module, drawn(nnx.state(module, nnx.Param), "float32")


# ---- Flax ----------------------------------------------------------------------------------------


def boxed(variables):
    from flax import linen as nn

    return jax.tree.map(lambda a: nn.Partitioned(a, (None,) * a.ndim), variables)


LINEN = {
    "by slashes": lambda v, _: flattened(v, "/"),
    "by points, without params": lambda v, _: flattened(v["params"], "."),
    "by tuples": lambda v, _: {tuple(name.split("/")): a for name, a in flattened(v, "/").items()},
    "in a training's state": lambda v, _: {"step": 3, "params": v, "opt_state": {"0": {}, "1": None}},
    "of boxes": lambda v, _: boxed(v),
    "of boxes, by orbax": lambda v, folder: orbax(boxed(v), folder),
    "of boxes, by msgpack": lambda v, folder: msgpack(boxed(v), folder),
    "frozen": lambda v, _: flax.core.freeze(v),
}


@pytest.mark.parametrize("form", LINEN)
def test_from_linen(form, tmp_path):
    from jaxrnn.interop.flax import from_linen

    module, variables = linen_grus()
    assert_same(from_linen(module, LINEN[form](variables, tmp_path))[1], from_linen(module, variables)[1])


def test_from_linen_of_cells_that_a_compact_network_holds():
    from jaxrnn.interop.flax import from_linen

    module, variables = linen_grus()
    own = {name: runs["cell"] for name, runs in variables["params"].items()}
    assert_same(from_linen(module, own)[1], from_linen(module, variables)[1])
    want = from_linen(module.forward_rnn, variables["params"]["forward_rnn"])[1]
    assert_same(from_linen(module.forward_rnn, own["forward_rnn"])[1], want)


NNX = {
    "State": lambda state, _: state,
    "numbers as text": lambda state, folder: orbax_pytree(state, folder),
    "by slashes": lambda state, folder: flattened(orbax_pytree(state, folder), "/"),
    "by points, without value": lambda state, _: {
        k.removesuffix(".value"): a for k, a in flattened(state, ".").items()
    },
}


@pytest.mark.parametrize("form", NNX)
def test_from_nnx(form, tmp_path):
    from flax import nnx

    from jaxrnn.interop.flax import from_nnx

    module, state = nnx_grus()
    graph, _, rest = nnx.split(module, nnx.Param, ...)
    want = from_nnx(nnx.merge(graph, state, rest))[1]
    assert_same(from_nnx(module, NNX[form](state, tmp_path))[1], want)


def test_from_nnx_leaves_the_module_as_it_is():
    from flax import nnx

    from jaxrnn.interop.flax import from_nnx

    zeros = dict.fromkeys(("kernel_init", "recurrent_kernel_init"), jax.nn.initializers.zeros)
    module = nnx.GRUCell(I, H, rngs=nnx.Rngs(0), **zeros)
    state = nnx.state(module)
    weights = jax.tree.map(np.ones_like, nnx.to_pure_dict(state))
    _, params = from_nnx(module, weights)
    np.testing.assert_array_equal(jnp.abs(params.W_xh), np.ones((I, 3 * H)))
    np.testing.assert_array_equal(module.dense_i.kernel[...], np.zeros((I, 3 * H)))
    assert_same(nnx.state(module), state)


@pytest.mark.parametrize("through", [msgpack, orbax])
def test_modules_around_layers_of_ours(through, tmp_path):
    """Ours inside linen and nnx: an entry for each layer, dropout's empty one too; a lone array."""
    from flax import nnx

    from jaxrnn.interop.flax import from_linen, from_nnx, linen_cell, linen_variables, nnx_layer

    layer = jr.stack(jr.bidirectional(jr.gru(I, H), jr.lstm(I, H)), jr.dropout(0.5), jr.readout(2 * H, 2))
    params = drawn_params(layer)
    held = nnx.to_pure_dict(nnx.state(nnx_layer(layer, params), nnx.Param))
    blank = nnx_layer(layer, jax.tree.map(jnp.zeros_like, params))
    (tmp_path / "layer").mkdir()
    assert_same(from_nnx(blank, through(held, tmp_path / "layer"))[1], params)
    assert_same(jax.tree.leaves(blank.jaxrnn_params()), jax.tree.leaves(jax.tree.map(jnp.zeros_like, params)))

    for name, init in {
        "records": jr.lstm(I, H, learned_carry=True).init,
        "a lone array": lambda key: jnp.ones(H),
    }.items():
        cell = jr.elman(I, H)._replace(init=init)
        own = drawn(jax.eval_shape(init, jax.random.key(0)), "float32")
        (tmp_path / name).mkdir()
        assert_same(from_linen(linen_cell(cell), through(linen_variables(own), tmp_path / name))[1], own)


def test_not_from_nnx():
    from flax import nnx

    from jaxrnn.interop.flax import from_nnx

    module, state = nnx_grus()
    held = nnx.to_pure_dict(state)
    for weights, message in [
        (None, "from_nnx: the module holds shapes and no weights; give them as well: from_nnx(module, weights)."),
        (
            {"encoder": held},
            "from_nnx: expected backward_rnn.cell.dense_h.kernel in the weights of a Bidirectional, got encoder",
        ),
        (
            {**held, "backward_rnn": {"cell": {"dense_h": {"kernel": np.ones((2, 2))}}}},
            "kernel must have the shape (4, 12), got (2, 2)",
        ),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            from_nnx(module, weights)
    with pytest.raises(TypeError, match=r"from_nnx: expected the weights as a dict or an nnx\.State, got list"):
        from_nnx(module, [held])


def test_arrays_that_a_module_does_not_know_are_told():
    """A bias in a file for a cell without one; what an nnx.Rngs holds is no weight."""
    from flax import nnx

    from jaxrnn.interop.flax import from_linen, from_nnx, linen_cell, linen_variables, nnx_cell

    cell, bare = jr.elman(I, H), jr.elman(I, H, bias=False)
    params = drawn_params(cell)
    with pytest.raises(ValueError, match=r"^from_linen: b among the parameters given is not of this module; give"):
        from_linen(linen_cell(bare), linen_variables(params))
    held = nnx.to_pure_dict(nnx.state(nnx_cell(cell, params)))
    module = nnx_cell(bare, params._replace(b=None))
    with pytest.raises(ValueError, match=r"^from_nnx: params\.b among the parameters given is not of this module"):
        from_nnx(module, held)
    del held["params"]["b"]
    assert_same(from_nnx(module, {**held, "rngs": {"count": 0, "key": np.ones(2)}})[1], params._replace(b=None))


# ---- Haiku and Equinox ---------------------------------------------------------------------------


HAIKU = {
    "by slashes": lambda params: flattened(params, "/"),
    "by a point before the array": lambda params: flattened(params, "."),
    "of dicts all the way": lambda params: {"net": {"~": {"lstm": {"linear": params["net/~/lstm/linear"]}, "b": 1.0}}},
}


@pytest.mark.parametrize("form", HAIKU)
def test_from_haiku(form):
    from jaxrnn.interop.haiku import from_haiku, to_haiku

    cell = jr.lstm(I, H)
    params = to_haiku(cell, drawn_params(cell), name="net/~/lstm")
    given = HAIKU[form](params | {"net/~/lstm": {"scale": np.ones(2)}, "net": {"scale": np.ones(2)}})
    assert_same(from_haiku("LSTM", given, name="net/~/lstm")[1], from_haiku("LSTM", params, name="net/~/lstm")[1])
    with pytest.raises(
        ValueError, match=r"in the module 'lstm/linear' of a LSTM, got no such module; .*net/~/lstm/linear"
    ):
        from_haiku("LSTM", given)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_from_equinox_by_the_names_of_arrays(kind, bias, tmp_path):
    from jaxrnn.interop.equinox import from_equinox, to_equinox

    cell = jr.lstm(I, H, bias=bias) if kind == "lstm" else jr.gru(I, H, reset="after", bias=bias)
    module = to_equinox(cell, drawn_params(cell))
    back = orbax(module, tmp_path)
    assert ("bias" in back) and (back["bias"] is None) == (not bias)
    again, params = from_equinox(back)
    assert again.spec == cell.spec
    assert_same(params, from_equinox(module)[1])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "got nothing"),
        ({"cells": {"weight_ih": np.ones((8, 3))}}, "got cells (a dict)"),
        ({"weight_ih": np.ones((8, 3)), "weight_hh": np.ones((8, 3))}, "got weight_ih (8, 3), weight_hh (8, 3)"),
        ({"weight_ih": np.ones((8, 3)), "weight_hh": np.ones((8, 2)), "bias_n": np.ones(2)}, "bias_n (2,)"),
        ({"weight_ih": np.ones((6, 3)), "weight_hh": np.ones((6, 2)), "bias": np.ones(6)}, "bias (6,)"),
    ],
)
def test_not_from_equinox(arrays, said):
    from jaxrnn.interop.equinox import from_equinox

    with pytest.raises(
        ValueError, match=rf"from_equinox: expected the arrays of one cell, .*{re.escape(said)}; give what"
    ):
        from_equinox(arrays)


def test_equinox_arrays_of_other_sizes():
    from jaxrnn.interop.equinox import from_equinox

    arrays = {"weight_ih": np.ones((8, 3)), "weight_hh": np.ones((8, 2)), "bias": np.ones(4)}
    with pytest.raises(ValueError, match=r"from_equinox: bias must have the shape \(8,\), got \(4,\)"):
        from_equinox(arrays)


# ---- all of them ---------------------------------------------------------------------------------


def of_linen():
    from jaxrnn.interop.flax import from_linen, to_linen

    cell = jr.gru(I, H, reset="after", param_dtype="bfloat16")
    module, variables = to_linen(cell, drawn_params(cell))
    return variables, lambda tree: from_linen(module, tree)


def of_nnx():
    from flax import nnx

    from jaxrnn.interop.flax import from_nnx, to_nnx

    cell = jr.lstm(I, H, param_dtype="bfloat16")
    module = to_nnx(cell, drawn_params(cell))
    return nnx.to_pure_dict(nnx.state(module, nnx.Param)), lambda tree: from_nnx(module, tree)


def of_haiku():
    from jaxrnn.interop.haiku import from_haiku, to_haiku

    cell = jr.gru(I, H, param_dtype="bfloat16")
    return to_haiku(cell, drawn_params(cell)), lambda tree: from_haiku("GRU", tree)


def of_equinox():
    from jaxrnn.interop.equinox import from_equinox, to_equinox

    cell = jr.lstm(I, H, param_dtype="bfloat16")
    module = to_equinox(cell, drawn_params(cell))
    names = ("weight_ih", "weight_hh", "bias")
    return {name: getattr(module, name) for name in names}, from_equinox


@pytest.mark.parametrize("make", [of_linen, of_nnx, of_haiku, of_equinox])
def test_bfloat16_stays(make, tmp_path):
    """As NumPy arrays of ml_dtypes, which msgpack gives, and as JAX's, which orbax gives."""
    tree, convert = make()
    want = convert(tree)[1]
    (tmp_path / "orbax").mkdir()
    for back in (msgpack(tree, tmp_path), orbax(tree, tmp_path / "orbax")):
        assert {np.asarray(a).dtype for a in jax.tree.leaves(back)} == {np.dtype(ml_dtypes.bfloat16)}
        assert_same(convert(back)[1], want)


def test_one_name_twice():
    a = np.ones(2)
    assert in_dicts("f", {"a/b": a, ("a", "c"): {0: a}, "d": [a, None, ()], "e": {"value": a}}) == {
        "a": {"b": a, "c": {"0": a}},
        "d": {"0": a},
        "e": a,
    }
    for tree in ({"a/b": a, "a": {"b": a}}, {"a": a, "a/b": a}, {"a/b": a, "a": a}):
        with pytest.raises(
            ValueError, match=r"^f: 'a(/b)?' is there twice, or stands below an array; rename one of them"
        ):
            in_dicts("f", tree)
