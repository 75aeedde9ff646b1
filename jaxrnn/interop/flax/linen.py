"""Flax linen: weights of its recurrent cells both ways, and any jaxrnn cell as a linen one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import jaxrnn as jr
from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn._checks import check_params
from jaxrnn.combine import MERGES, BiParams
from jaxrnn.interop.conversion import in_dicts, refuse, refuse_class
from jaxrnn.interop.flax._cells import (
    FlaxCell,
    check_weights,
    fixed_carry,
    from_flax,
    merge_name,
    names_of,
    one_level,
    to_flax,
)
from jaxrnn.interop.flax._names import feature_axes, leading, nested, params_like
from jaxrnn.saving.parameters import as_jax

KINDS = {
    nn.SimpleCell: "simple",
    nn.LSTMCell: "lstm",
    nn.OptimizedLSTMCell: "lstm",
    nn.GRUCell: "gru",
    nn.MGUCell: "mgu",
}


@checks_arguments
def from_linen(module: nn.Module, params: Mapping[str, Any]) -> tuple[Cell | Layer, PyTree]:
    """A linen recurrent module and its parameters as jaxrnn's.

    Flax keeps a kernel for each gate; its z (of a GRU) and f (of an MGU) are the share of the *old* state, so z
    blocks are negated: 1 - σ(a) = σ(-a). A SimpleCell's ``residual`` becomes a part of the recurrent matrix. A
    ``carry_init`` that gives the same for every key and sequence becomes a learned initial carry, which trains with the
    other parameters; Flax's does not.

    Args:
        module: a SimpleCell, LSTMCell, OptimizedLSTMCell, GRUCell or MGUCell; an ``nn.RNN`` of one, or an
            ``nn.Bidirectional`` of two such RNNs; or what :func:`linen_cell` gave.
        params: its parameters, its variables ``{"params": …}``, or a TrainState's dict; as they stand in memory, or as
            a file gave them back: NumPy arrays, names joined by "/" or ".", one level in place of many. For an RNN
            those of its cell will do, which a network made in ``nn.compact`` keeps (``params["GRUCell_0"]``).

    Returns:
        ``(cell, params)``; for an RNN ``(layer, params)``. A layer is time-major, whatever ``time_major`` says.

    Raises:
        ValueError, TypeError: what has no counterpart: other classes, a ``carry_init`` that draws, a GRU with
            a ``gate_fn`` for which 1 - gate_fn(a) = gate_fn(-a) does not hold, an RNN that returns its outputs in
            reversed order; parameters that do not fit the module; float64 ones where JAX's 64 bits are off.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> from flax import linen as nn
        >>> from jaxrnn.interop.flax import from_linen
        >>> theirs, x, zeros = nn.OptimizedLSTMCell(5), jnp.ones((2, 3)), jnp.zeros((2, 5))
        >>> variables = theirs.init(jax.random.key(0), (zeros, zeros), x)
        >>> cell, params = from_linen(theirs, variables)
        >>> carry, y = cell.step(params, jr.LSTMCarry(h=zeros, c=zeros), x)
        >>> bool(jnp.allclose(y, theirs.apply(variables, (zeros, zeros), x)[1], atol=1e-6))
        True

    Differs: Flax's LSTM carry is (c, h), ours ``LSTMCarry(h, c)``. ``nn.RNN`` leaves on padding what it computed
    there, ours are 0. Under a narrow ``dtype`` Flax sums and carries in it, jaxrnn in at least float32. Initialisers
    and ``unroll`` are not taken over; the weights are.
    """
    refuse_class("from_linen", module)
    params = in_dicts("from_linen", _dict("params", nn.meta.unbox(params)))
    if type(module) is LinenCell:
        params = params["params"] if params.keys() == {"params"} else params
        like = jax.eval_shape(module.cell.init, jax.random.key(0))
        own = params_like("from_linen", like, params)
        check_params("from_linen", own, like)
        return module.cell, as_jax("from_linen", own)
    while isinstance(params.get("params"), dict):  # in variables, in a TrainState, in a TrainState of variables
        params = params["params"]
    if type(module) is nn.RNN:
        if module.reverse and not module.keep_order:
            refuse("from_linen", "an RNN with reverse=True and keep_order=False", _REVERSED)
        cell, own = _from_run(module, params)
        return jr.scan(cell, reverse=module.reverse), own
    if type(module) is nn.Bidirectional:
        if set(params) != {"forward_rnn", "backward_rnn"}:
            raise ValueError(
                f"from_linen: expected the parameters forward_rnn and backward_rnn, got {', '.join(params)}; pass "
                f"those of this very module (one RNN shared by both directions has no counterpart); a network in "
                f"nn.compact holds the two cells apart: give {{'forward_rnn': params['GRUCell_0'], 'backward_rnn': "
                f"params['GRUCell_1']}}."
            )
        ahead, own_ahead = _from_run(module.forward_rnn, _dict("forward_rnn", params["forward_rnn"]))
        back, own_back = _from_run(module.backward_rnn, _dict("backward_rnn", params["backward_rnn"]))
        merge = merge_name(module.merge_fn, nn.Bidirectional.merge_fn)
        return jr.bidirectional(ahead, back, merge=merge), BiParams(own_ahead, own_back)
    return from_flax("from_linen", _read(module, params))


_REVERSED = "jaxrnn's outputs stand in input order; set keep_order=True and turn them round where you need it"


def _from_run(module: nn.Module, params: Mapping[str, Any]) -> tuple[Cell, PyTree]:
    if type(module) is not nn.RNN:
        refuse("from_linen", f"a Bidirectional of {type(module).__name__}", "both directions must be nn.RNN")
    return from_flax("from_linen", _read(module.cell, _dict("cell", params.get("cell", params))))


def _dict(name: str, params: Any) -> Mapping[str, Any]:
    if not isinstance(params, Mapping):
        raise TypeError(
            f"from_linen: {name} must be a dict of parameters, got {type(params).__name__}; pass what module.init gave."
        )
    return params


def _read(module: nn.Module, params: Mapping[str, Any]) -> FlaxCell:
    who = "from_linen"
    if type(module) not in KINDS:
        known = ", ".join(cls.__name__ for cls in KINDS)
        refuse(who, f"a {type(module).__name__}", f"known are {known}, nn.RNN and nn.Bidirectional of them")
    kind = KINDS[type(module)]
    if kind == "mgu" and not module.reset_gate:
        kind = "mgu without reset"
    weights = check_weights(who, kind, params, module.features)
    return FlaxCell(
        kind,
        weights,
        module.activation_fn,
        getattr(module, "gate_fn", None),
        getattr(module, "residual", False),
        module.dtype,
        fixed_carry(who, module.carry_init, module.features, module.param_dtype),
    )


def to_linen(model: Cell | Layer, params: PyTree) -> tuple[nn.Module, dict[str, Any]]:
    """A jaxrnn cell or layer and its parameters as a linen module and its variables.

    Args:
        model: an ``elman`` without ``output_size``, an ``lstm`` without projection, a ``gru`` with ``reset="after"``
            or an ``mgu`` that resets after the product or not at all; or a layer that scans one, or two of them
            in both directions.
        params: its parameters.

    Returns:
        ``(module, variables)``: a SimpleCell, OptimizedLSTMCell, GRUCell or MGUCell; for a layer an ``nn.RNN`` or
        ``nn.Bidirectional``, time-major, that returns its carry and keeps the outputs in input order; and
        ``{"params": …}``. Biases that the cell was made without are zeros there.

    Raises:
        ValueError, TypeError: what has no counterpart: other cells and options, learned initial carries, stacks.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> from jaxrnn.interop.flax import to_linen
        >>> layer = jr.scan(jr.elman(3, 5))
        >>> params = layer.init(jax.random.key(0))
        >>> theirs, variables = to_linen(layer, params)
        >>> carry, ys = theirs.apply(variables, jnp.ones((7, 2, 3)))
        >>> bool(jnp.allclose(ys, layer.apply(params, jnp.ones((7, 2, 3)))[1], atol=1e-6))
        True

    Differs: see :func:`from_linen`; for what has no counterpart, :func:`linen_cell` runs the cell as it is.
    """
    level = one_level("to_linen", model, params)
    made = [_write(to_flax("to_linen", run)) for run in level.runs]
    if isinstance(model, Cell):
        ((module, own),) = made
        return module, {"params": own}
    if len(made) == 1:
        ((module, own),) = made
        reverse = level.runs[0].reverse
        rnn = nn.RNN(module, time_major=True, return_carry=True, reverse=reverse, keep_order=reverse)
        return rnn, {"params": {"cell": own}}
    (ahead, own_ahead), (back, own_back) = made
    options = {} if level.merge == "concat" else {"merge_fn": MERGES[level.merge]}  # type: ignore[index]
    both = nn.Bidirectional(nn.RNN(ahead), nn.RNN(back), time_major=True, return_carry=True, **options)
    return both, {"params": {"forward_rnn": {"cell": own_ahead}, "backward_rnn": {"cell": own_back}}}


def _write(cell: FlaxCell) -> tuple[nn.Module, dict[str, Any]]:
    weights = as_jax("to_linen", cell.weights)
    kernel = weights[names_of(cell.kind)[0]]["kernel"]
    options = {"dtype": cell.dtype, "param_dtype": kernel.dtype, "activation_fn": cell.activation}
    if cell.kind == "simple":
        return nn.SimpleCell(kernel.shape[1], **options), weights
    options["gate_fn"] = cell.gate
    if cell.kind in ("mgu", "mgu without reset"):
        return nn.MGUCell(kernel.shape[1], reset_gate=cell.kind == "mgu", **options), weights
    cls = nn.OptimizedLSTMCell if cell.kind == "lstm" else nn.GRUCell
    return cls(kernel.shape[1], **options), weights


class LinenCell(nn.RNNCellBase):
    """A jaxrnn cell as a linen recurrent cell; :func:`linen_cell` makes it."""

    cell: Cell

    def __post_init__(self):
        feature_axes("linen_cell", self.cell)
        super().__post_init__()

    def setup(self):
        like = jax.eval_shape(self.cell.init, jax.random.key(0))
        names = nested(like)
        missing = any(not self.has_variable("params", name) for name in names)
        # One key draws all parameters, as in cell.init; then each is stored under its name.
        drawn = nested(self.cell.init(self.make_rng("params"))) if missing and self.has_rng("params") else None

        def value(key, name):
            return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), names[name]) if drawn is None else drawn[name]

        params = params_like("linen_cell", like, {name: self.param(name, value, name) for name in names})
        # As functions, since linen freezes dicts and lists that are attributes.
        self._step = partial(self.cell.step, params)
        self._initial_carry = partial(self.cell.initial_carry, params)

    def __call__(self, carry: PyTree, inputs: jax.Array) -> tuple[PyTree, PyTree]:
        return self._step(carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> PyTree:
        """The cell's initial carry; outside of ``apply`` that of the parameters which ``cell.init(rng)`` draws."""
        batch_shape = leading("initialize_carry", input_shape, self.num_feature_axes)
        if self.scope is None:
            return self.cell.initial_carry(self.cell.init(rng), batch_shape)
        return self._initial_carry(batch_shape)

    @property
    def num_feature_axes(self) -> int:
        return feature_axes("linen_cell", self.cell)


def linen_cell(cell: Cell) -> LinenCell:
    """Any jaxrnn cell, your own included, as a linen recurrent cell.

    Args:
        cell: a Cell without noise, whose input is one array.

    Returns:
        A ``nn.RNNCellBase`` for ``nn.RNN``, ``nn.Bidirectional`` or your own module, called as
        ``(carry, x) -> (carry, y)``. Its parameters stand under the names of the cell's own, ``W_xh`` and so on, and
        are drawn by ``cell.init``; :func:`linen_variables` gives existing ones that form, :func:`from_linen` takes
        them back.

    Raises:
        ValueError: a cell with noise, which is drawn once for a whole run; an input that is no array with features.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> from flax import linen as nn
        >>> from jaxrnn.interop.flax import linen_cell
        >>> rnn = nn.RNN(linen_cell(jr.elman(3, 5)), return_carry=True)
        >>> variables = rnn.init(jax.random.key(0), jnp.ones((2, 7, 3)))
        >>> carry, ys = rnn.apply(variables, jnp.ones((2, 7, 3)), seq_lengths=jnp.array([7, 4]))
        >>> carry.shape, ys.shape, sorted(variables["params"]["cell"])
        ((2, 5), (2, 7, 5), ['W_hh', 'W_xh', 'b'])

    Differs: Flax runs it with its own scan, without ``jr.scan``'s plan; outputs on padding are not 0.
    """
    return LinenCell(cell)


@checks_arguments
def linen_variables(params: PyTree) -> dict[str, Any]:
    """A jaxrnn cell's parameters as the variables of its :func:`linen_cell`.

    Args:
        params: any pytree of arrays.

    Returns:
        ``{"params": …}``, dicts in dicts under the names of fields, dict entries and places; None stands nowhere.

    Example:
        >>> import jax, jaxrnn as jr
        >>> from jaxrnn.interop.flax import linen_variables
        >>> sorted(linen_variables(jr.gru(3, 5).init(jax.random.key(0)))["params"])
        ['W_hh', 'W_xh', 'b']
    """
    return {"params": nested(params)}
