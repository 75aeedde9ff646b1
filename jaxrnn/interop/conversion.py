"""What converters share: a model as levels of runs, gates in another order, trees from files, refusals."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from jaxrnn._base import Cell, Layer, PyTree, check_model
from jaxrnn._checks import check_params
from jaxrnn._spec import Spec, defaults_of, factory_of
from jaxrnn.cells.activations import ACTIVATIONS
from jaxrnn.cells.fused import GateOrder
from jaxrnn.combine import BiParams


class Run(NamedTuple):
    """A cell that runs over the sequence in one direction."""

    cell: Spec
    params: PyTree
    reverse: bool = False

    def option(self, name: str, default: Any = None) -> Any:
        """An option of the cell's factory, or its default there."""
        return dict(self.cell.options).get(name, default)


class Level(NamedTuple):
    """One layer: a run, or a forward and a backward one whose outputs are merged; then dropout."""

    runs: tuple[Run, ...]
    merge: str | None = None  # of two runs
    dropout: float = 0.0  # on what this level hands to the next


def levels_of(who: str, model: Cell | Layer, params: PyTree) -> list[Level]:
    """A cell, a scanned or bidirectional one, or a stack of such (and of dropout between them), as levels.

    Raises:
        ValueError, TypeError: models of another form, with the part that has no counterpart.
    """
    return _levels(who, checked_spec(who, model, params), params)


def checked_spec(who: str, model: Cell | Layer, params: PyTree) -> Spec:
    """The spec of a built-in cell or layer, once its params are seen to have the structure and shapes of its init's."""
    check_model(who, model)
    if model.spec is None:
        refuse(who, "a user's own cell or layer", "its equations are not known here")
    check_params(who, params, jax.eval_shape(lambda: model.init(jax.random.key(0))))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        as_weights(who, f"params{jax.tree_util.keystr(path)}", leaf)
    return model.spec


def as_weights(who: str, name: str, a: Any) -> np.ndarray:
    """Weights, of this library or another, as a NumPy array of floats.

    Raises:
        TypeError: no array, one that is traced, one of other entries. RuntimeError: an array that was deleted.
    """
    if isinstance(a, jax.core.Tracer):
        raise TypeError(f"{who}: {name} is traced and has no value yet; convert outside of jit, grad and vmap.")
    try:
        array = np.asarray(a)
    except RuntimeError as error:
        raise RuntimeError(f"{who}: {name} cannot be read: {error} Pass weights that were not donated.") from error
    except (TypeError, ValueError):
        if hasattr(a, "__array__"):  # a tensor of a damaged file, which says so
            raise
        array = np.asarray(None)  # lists of different lengths
    if not jnp.issubdtype(array.dtype, jnp.floating):
        came = type(a).__name__ if array.dtype == object else array.dtype.name
        raise TypeError(
            f"{who}: {name} must be an array of floats, got {came}; pass the weights as they are stored or trained, or "
            f"cast them with .astype('float32')."
        )
    return array


def check_shape(who: str, name: str, a: np.ndarray, shape: Sequence[int | None], fix: str) -> None:
    """An array has a shape, None in which is any size from 1."""
    if a.ndim != len(shape) or not all(
        came == size or (size is None and came) for came, size in zip(a.shape, shape, strict=True)
    ):
        wanted = str(tuple("any" if size is None else size for size in shape)).replace("'", "")
        raise ValueError(f"{who}: {name} must have the shape {wanted}, got {a.shape}; {fix}.")


def _levels(who: str, spec: Spec, params: PyTree) -> list[Level]:
    options = dict(spec.options)
    if spec.kind == "stack":
        levels: list[Level] = []
        for child, own in zip(spec.children, params, strict=True):
            cell = child.children[0] if child.kind == "scan" else child
            if cell.kind == "dropout":
                if not levels:
                    refuse(who, "dropout before the first layer", "put it between layers")
                if levels[-1].dropout:
                    refuse(who, "dropout twice in a row", "put one, of the rate 1 - (1 - a) (1 - b)")
                levels[-1] = levels[-1]._replace(dropout=dict(cell.options)["rate"])
            else:
                levels += _levels(who, child, own)
        return levels
    if spec.kind == "scan":
        return [Level((Run(_linear(spec.children[0]), params, options.get("reverse", False)),))]
    if spec.kind == "bidirectional":
        merge = options.get("merge", "concat")
        if callable(merge):
            refuse(who, "a merge that is a function", "name one of concat, sum, mean, product")
        check_run(who, spec)
        ahead, back = spec.children
        return [Level((Run(ahead, params.forward), Run(back, params.backward, reverse=True)), merge)]
    return [Level((Run(_linear(spec), params),))]


def _linear(spec: Spec) -> Spec:
    """A ``dense`` without an activation as the ``readout`` that it is."""
    options = dict(spec.options)
    if spec.kind != "dense" or named(options.pop("activation", "identity")) != "identity":
        return spec
    return spec._replace(kind="readout", options=tuple(options.items()))


def check_run(who: str, spec: Spec) -> None:
    """Refuse a ``bidirectional`` whose ``run`` may compute something else than its cells do."""
    run = dict(spec.options).get("run", jr.scan)
    options = run.keywords if isinstance(run, functools.partial) and not run.args else {}
    if getattr(run, "func", run) is not jr.scan or options.keys() - {"plan", "unroll", "checkpoint"}:
        refuse(who, "bidirectional with a run of its own", "what it makes of its cells is not known here")


def model_of(levels: Sequence[Level]) -> tuple[Layer, PyTree]:
    """The layer and its parameters: ``scan``, ``bidirectional``, or a ``stack`` where there are several levels."""
    members: list[Any] = []
    params: list[PyTree] = []
    for level in levels:
        cells = [jr.build(run.cell) for run in level.runs]
        if len(cells) == 2:
            members.append(jr.bidirectional(*cells, merge=level.merge or "concat"))
            params.append(BiParams(*(run.params for run in level.runs)))
        else:
            (run,) = level.runs
            members.append(jr.scan(cells[0], reverse=True) if run.reverse else jr.scan(cells[0]))
            params.append(run.params)
        if level.dropout:
            members.append(jr.dropout(level.dropout))
            params.append(())
    return (members[0], params[0]) if len(members) == 1 else (jr.stack(*members), tuple(params))


def spec_of(kind: str, input_size: int, hidden_size: int, **options: Any) -> Spec:
    """The spec of a built-in cell; options that are None or the factory's default are left to it."""
    given = {name: value for name, value in options.items() if value is not None}
    return factory_of(kind)(input_size, hidden_size, **given).spec


def param_dtype(W: Any) -> str | None:
    """The dtype of weights as the factories' option; None for float32, their default."""
    return None if W.dtype == np.float32 else W.dtype.name


# What a spec says of how parameters start, how wide they are, and in which dtype the work is done.
NOT_IN_WEIGHTS = (
    *("input_size", "hidden_size", "param_dtype", "dtype"),
    *("input_init", "recurrent_init", "bias_init", "kernel_init", "forget_bias", "T_max"),
)


def check_options(who: str, run: Run, *known: str) -> None:
    """Refuse what a cell was built with and what neither weights nor the ``known`` options of a library can say."""
    for name, value in run.cell.options:
        if name not in (*NOT_IN_WEIGHTS, *known):
            refuse(who, f"{run.cell.kind}'s {name}={value!r}", "the other library's layer has no such option")


def reordered(a: Any, old: GateOrder, new: GateOrder, *, negate: GateOrder = (), axis: int = -1) -> Any:
    """The blocks of a fused array in another order of gates, some of them negated.

    A gate that one library gives to the old state and the other to the candidate is negated: 1 - σ(a) = σ(-a).
    """
    blocks = dict(zip(old, np.split(np.asarray(a), len(old), axis=axis), strict=True))
    return np.concatenate([-blocks[gate] if gate in negate else blocks[gate] for gate in new], axis=axis)


def in_dicts(who: str, tree: PyTree) -> Any:
    """A tree of arrays as dicts in dicts with text keys, whatever wrote and read the file that it came from.

    orbax gives dicts and lists for records and tuples, and nnx's arrays in dicts of ``value`` alone; msgpack gives
    dicts of "0", "1" … for both; archives have one level of names, joined by "/" or ".". None stands nowhere.
    """
    out: dict[str, Any] = {}

    def put(path: tuple[str, ...], part: Any) -> None:
        if isinstance(part, Mapping):
            entries: Any = part.items()
        elif isinstance(part, list | tuple):
            entries = zip(part._fields, part, strict=True) if hasattr(part, "_fields") else enumerate(part)
        else:
            entries = ()
            if part is not None:
                _put(who, out, path, part)
        for name, own in entries:
            put((*path, *names_in(name)), own)

    put(("",), tree)
    return _without_value(out.get("", {}))


def _put(who: str, at: dict[str, Any], path: tuple[str, ...], a: Any) -> None:
    *way, last = path
    for name in way:
        at = at.setdefault(name, {})
        if not isinstance(at, dict):
            break
    if not isinstance(at, dict) or last in at:
        raise ValueError(f"{who}: {'/'.join(path[1:])!r} is there twice, or stands below an array; rename one of them.")
    at[last] = a


def names_in(name: Any) -> tuple[str, ...]:
    """The names that are joined in a key: ``"lstm/linear"``, ``"cell.ii"``, ``("cell", "ii")``."""
    parts = name if isinstance(name, tuple) else (name,)
    return tuple(word for part in parts for word in re.split("[/.]", str(part)))


def _without_value(tree: Any) -> Any:
    """Without the level of dicts that have a ``value`` alone, on arrays and on the whole."""
    if not isinstance(tree, dict):
        return tree
    named = {name: _without_value(part) for name, part in tree.items()}
    return named["value"] if named.keys() == {"value"} and not isinstance(named["value"], dict) else named


def refuse(who: str, what: str, why: str) -> NoReturn:
    """The error for what has no counterpart."""
    raise ValueError(f"{who}: {what} has no counterpart: {why}.")


def refuse_class(who: str, module: Any) -> None:
    """Refuse a class where a module made by it is meant."""
    if isinstance(module, type):
        name = module.__name__
        raise TypeError(f"{who}: expected a module, got the class {name}; pass one that it made, {name}(…).")


def named(function: Any) -> Any:
    """The built-in activation's name where this function is one; any other function as it is."""
    return next((name for name, known in ACTIVATIONS.items() if function is known), function)


def requires(who: str, run: Run, theirs: str, **wanted: Any) -> None:
    """Refuse a cell with an option that differs from what their cell has built in."""
    defaults = defaults_of(run.cell.kind)
    for name, want in wanted.items():
        got = named(run.option(name, defaults[name]))
        if got != want:
            refuse(who, f"{run.cell.kind} with {name}={got!r}", f"{theirs} has {want!r}")


def no_learned_carry(who: str, run: Run, theirs: str) -> None:
    """Refuse a cell whose initial carry is learned."""
    if run.option("learned_carry", False):
        refuse(who, "a learned initial carry", f"{theirs} has no such parameter; pass it as the initial state")


def own_dtype(who: str, run: Run, weights: Any, theirs: str) -> None:
    """Refuse a compute dtype that is not the weights' own."""
    dtype = run.option("dtype")
    if dtype is not None and np.dtype(dtype) != weights:
        refuse(who, f"dtype={dtype!r} with weights in {weights}", f"{theirs} computes in the dtype of the weights")
