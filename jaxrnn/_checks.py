"""The checks behind the error messages: who, what was expected, what came, and the fix.

All of them look at shapes, dtypes and tree structures alone, so they raise while JAX traces.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._dtypes import accumulator, promoted

PyTree = Any
LONGEST = np.iinfo(np.int32).max  # times, steps and sizes of axes are int32


def nearest(name: Any, known: Iterable[str], otherwise: str = ".") -> str:
    """The end of a sentence: ``"; did you mean 'x'?"`` where a known name is close."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else otherwise


def check_sizes(who: str, **sizes: Any) -> None:
    """Each size is a positive int."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, numbers.Integral):
            raise TypeError(f"{who}: {name} must be a positive int, got {size!r} ({type(size).__name__}).")
        if size <= 0:
            raise ValueError(f"{who}: {name} must be a positive int, got {size}; give at least 1.")
        if int(size) > LONGEST:
            raise ValueError(f"{who}: {name} must be at most {LONGEST:,}, the largest int32, got {size:,}.")


def check_rate(who: str, name: str, rate: Any, *, below: float = 1.0) -> None:
    """A rate of dropping, from 0 to below 1."""
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"{who}: {name} must be a Python number, got {type(rate).__name__}.")
    if not 0 <= rate < below:
        raise ValueError(f"{who}: {name} must be at least 0 and below {below:g}, got {rate!r}.")


def check_batch_shape(who: str, batch_shape: Any) -> None:
    """A batch shape is a tuple of sizes, not one size."""
    if not isinstance(batch_shape, tuple | list):
        raise TypeError(f"{who}: batch_shape must be a tuple of ints, got {batch_shape!r}; give ({batch_shape!r},).")
    for size in batch_shape:
        if isinstance(size, numbers.Real) and not (isinstance(size, numbers.Integral) and int(size) >= 0):
            raise ValueError(f"{who}: batch_shape must be a tuple of ints, 0 or above, got {batch_shape!r}.")


def check_array(who: str, name: str, value: Any) -> None:
    """Something is numbers: an array, a number, or lists of them."""
    leaves = jax.tree.leaves(value, is_leaf=lambda leaf: leaf is None) if isinstance(value, list | tuple) else [value]
    for leaf in leaves:
        # objects, words, dates, records: NumPy has them, JAX not
        words = isinstance(leaf, np.ndarray) and (leaf.dtype.kind in "OSUMm" or leaf.dtype.type is np.void)
        if words or not (hasattr(leaf, "dtype") or isinstance(leaf, numbers.Number)):
            raise TypeError(f"{who}: {name} must be an array of numbers, got {value!r:.80} ({type(value).__name__}).")
    if isinstance(value, list | tuple) and not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        try:
            np.shape(value)
        except ValueError:
            raise ValueError(
                f"{who}: {name} must be an array, got lists of unequal lengths, {value!r:.80}; jr.pad makes one array "
                f"of such sequences."
            ) from None


ONE_ARRAY = "make one of them: jr.branch(…, merge='concat'), or a jr.pointwise(function) in between"


def check_one_array(who: str, name: str, value: Any, fix: str = ONE_ARRAY) -> None:
    """Something is one array, neither a tree of them, as ``jr.branch`` puts out, nor a list of numbers."""
    if not hasattr(value, "dtype") and any(np.ndim(leaf) for leaf in jax.tree.leaves(value)):
        raise TypeError(f"{who}: {name} must be one array, got {_outline(value)}; {fix}.")
    if isinstance(value, list | tuple):
        raise TypeError(f"{who}: {name} must be an array, got {value!r:.80} ({type(value).__name__}); use jnp.asarray.")


def check_key(who: str, key: Any) -> None:
    """A key is one, of ``jax.random.key`` or ``jax.random.PRNGKey``."""
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if typed and key.shape:
        raise ValueError(f"{who}: key must be one key, got {key.shape}; use jax.vmap over several, or key[0].")
    if not typed and (getattr(key, "dtype", None) != jnp.uint32 or len(key.shape) != 1):
        raise TypeError(f"{who}: key must be a key, as jax.random.key(0) is, got {_outline(key)}.")


def check_choice(who: str, name: str, value: Any, known: Iterable[str], *, or_function: bool = False) -> None:
    """An option is one of its known names, or (where allowed) a function."""
    known = list(known)
    if (or_function and callable(value)) or (isinstance(value, str) and value in known):
        return
    also = " or a function" if or_function else ""
    raise ValueError(
        f"{who}: {name} must be one of {', '.join(map(repr, known))}{also}, got {value!r}{nearest(value, known)}"
    )


def check_features(who: str, x: Any, size: int, axes: str = "(*B, {size})") -> None:
    """The last axis of an input is the size that the cell was built for."""
    check_one_array(who, "x", x)
    check_array(who, "x", x)
    shape = jnp.shape(x)
    if len(shape) == 0 or shape[-1] != size:
        came = f"{shape[-1]} features, shape {shape}" if shape else "a scalar"
        raise ValueError(
            f"{who}: expected x of shape {axes.format(size=size)}, got {came}; "
            f"build the cell with input_size={shape[-1] if shape else 1} or pass inputs with {size} features."
        )


def check_real(who: str, x: Any, dtype: Any, *, declared: bool) -> None:
    """The input can enter the computation without a silent change of its dtype.

    ``declared`` says that the user named the compute dtype himself; any float may then be cast to it.
    """
    check_array(who, "x", x)
    came = jnp.result_type(x)
    if not jnp.issubdtype(came, jnp.floating):
        raise TypeError(
            f"{who}: expected floating-point inputs, got {came}; put jr.embedding in front of integer tokens, "
            f"or cast with x.astype({jnp.dtype(dtype).name!r})."
        )
    if not declared and promoted(came, dtype) != dtype:
        raise TypeError(
            f"{who}: x is {came} but the parameters are {jnp.dtype(dtype).name}, and computing would drop digits; "
            f"cast x to {jnp.dtype(dtype).name}, or build the cell with dtype=… to declare the compute dtype."
        )


def check_params(who: str, params: PyTree, expected: PyTree | None, name: str = "params") -> None:
    """Parameters have the structure and the shapes that the cell's own ``init`` gives (None: unknown)."""
    if expected is not None:
        check_tree(who, name, params, expected, "pass the params that this cell's own init(key) returned")


def check_carry(who: str, carry: PyTree, expected: PyTree, batch_shape: tuple[int, ...], name: str = "carry") -> None:
    """A carry has the structure, shapes and dtypes of ``initial_carry(params, batch_shape)``."""
    fix = f"start from initial_carry(params, batch_shape={batch_shape}), or from the carry of a run of that batch"
    check_tree(who, name, carry, expected, fix)
    for (path, leaf), want in zip(*_with_paths(carry, expected), strict=True):
        if jnp.result_type(leaf) != want.dtype:
            raise TypeError(
                f"{who}: {name}{path} is {jnp.result_type(leaf)} but the cell carries {want.dtype}; "
                f"cast it with .astype({want.dtype.name!r})."
            )


def check_carry_kept(who: str, before: PyTree, after: PyTree) -> None:
    """A step returns a carry of the structure, shapes and dtypes that it was given."""
    fix = "a step must return a carry of the type that it was given (cast it back, or fix initial_carry)"
    check_tree(who, "the carry that step returned", after, before, fix)
    for (path, leaf), old in zip(*_with_paths(after, before), strict=True):
        if jnp.result_type(leaf) != jnp.result_type(old):
            raise TypeError(
                f"{who}: step turned carry{path} from {jnp.result_type(old)} into {jnp.result_type(leaf)}; {fix}."
            )


def check_pair(who: str, returned: Any) -> tuple[PyTree, PyTree]:
    """A step returns ``(carry, y)``."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        came = (
            f"{type(returned).__name__} of {len(returned)}" if isinstance(returned, tuple) else type(returned).__name__
        )
        raise TypeError(f"{who}: step must return the pair (carry, y), got {came}.")
    return returned[0], returned[1]


def check_affine(who: str, returned: Any, carry: PyTree) -> tuple[PyTree, PyTree]:
    """``(a, b)`` of a linear recurrence fit its carry, where that is known: a may lack leading axes of it."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        came = f"{type(returned).__name__} of {len(returned)}" if isinstance(returned, tuple | list) else "one thing"
        raise TypeError(f"{who}: affine must return the pair (a, b), of h_t = a_t * h_{{t-1}} + b_t, got {came}.")
    a, b = returned
    if carry is None:
        return a, b
    if len({jax.tree.structure(tree) for tree in (a, carry)}) > 1:
        raise ValueError(
            f"{who}: a of affine should be {_outline(carry)}, as the carry is, got {_outline(a)}; return one for each "
            f"leaf of the carry."
        )
    check_tree(who, "b of affine", b, carry, "b must have the structure and shapes of the carry, the batch axes too")
    for (path, h), a_h, b_h in zip(*_with_paths(carry, a), jax.tree.leaves(b), strict=True):
        shape, ndim = jnp.shape(h), jnp.ndim(a_h)
        if jnp.shape(a_h) != shape[len(shape) - ndim :]:
            raise ValueError(
                f"{who}: a{path} of affine should have shape {shape}, as the carry, or its last axes where all "
                f"sequences share a, got {jnp.shape(a_h)}; broadcast it with jnp.broadcast_to."
            )
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(a_h, h, b_h)
        if dtype != jnp.result_type(h):
            raise TypeError(
                f"{who}: a{path} and b{path} of affine are {jnp.result_type(a_h)} and {jnp.result_type(b_h)}, which "
                f"would turn the carry from {jnp.result_type(h)} into {dtype}; cast them with "
                f".astype({str(jnp.result_type(h))!r}), or let initial_carry give {dtype}."
            )
    return a, b


def check_leads_with_batch(who: str, what: str, tree: PyTree, batch_shape: tuple[int, ...]) -> None:
    """Every leaf's leading axes are the batch axes."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.shape(leaf)[: len(batch_shape)] != batch_shape:
            raise ValueError(
                f"{who}: {what}{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)} but every leaf must lead "
                f"with the batch axes {batch_shape}; give it the shape (*batch_shape, …), here "
                f"({', '.join(map(str, (*batch_shape, '…')))})."
            )


def check_has_number(who: str, what: str, T: Any) -> None:
    """T is a number, not an axis of a program that ``jax.export`` makes for any."""
    if not isinstance(T, int):
        raise ValueError(
            f"{who}: {what} divides a run by its number of steps, which is open in a program that is exported for any "
            f"T; export it for one T, or a layer without {what.split('=')[0]}, which takes the same params."
        )


def check_flags(
    who: str, name: str, flags: Any, shapes: tuple[tuple[int, ...], ...], meaning: str, axes: str = "(T, *B)"
) -> None:
    """A mask or reset array is boolean and has exactly one of the allowed shapes."""
    check_array(who, name, flags)
    if jnp.result_type(flags) != np.bool_:
        raise TypeError(
            f"{who}: {name} must be boolean ({meaning}), got {jnp.result_type(flags)}; use {name}.astype(bool)."
        )
    if jnp.shape(flags) not in shapes:
        raise ValueError(
            f"{who}: {name} must have shape {' or '.join(map(str, shapes))}, that is {axes}, "
            f"got {jnp.shape(flags)}; broadcast it with jnp.broadcast_to."
        )


def sequence_shape(who: str, xs: PyTree, x_ndim: PyTree) -> tuple[int, tuple[int, ...]]:
    """``(T, batch_shape)`` of a sequence whose leaves are (T, *B, *features)."""
    leaves = jax.tree_util.tree_leaves_with_path(xs)
    if not leaves:
        raise ValueError(f"{who}: xs holds no array; pass a pytree of arrays (T, *B, …).")
    ndims = [x_ndim] * len(leaves) if isinstance(x_ndim, int) else jax.tree.leaves(x_ndim)
    if len(ndims) != len(leaves):
        raise ValueError(f"{who}: xs should have the structure of the cell's x_ndim, {x_ndim!r}, got {_outline(xs)}.")
    seen: dict[tuple[int, ...], str] = {}
    for (path, leaf), ndim in zip(leaves, ndims, strict=True):
        shape, name = jnp.shape(leaf), f"xs{jax.tree_util.keystr(path)}"
        if len(shape) < 1 + ndim:
            legend = ", ".join(["T", "*B", "I", "I2", "I3"][: 2 + ndim])
            raise ValueError(
                f"{who}: {name} must be ({legend}), at least {1 + ndim} axes with time first, got shape {shape}; "
                f"a single step needs a time axis: {name}[None]."
            )
        seen.setdefault(shape[: len(shape) - ndim], name)
    if len(seen) > 1:
        came = " and ".join(f"{lead} in {name}" for lead, name in seen.items())
        raise ValueError(f"{who}: the leaves of xs disagree about the leading axes (T, *B): {came}.")
    (lead,) = seen
    return lead[0], lead[1:]


def step_batch_shape(who: str, x: PyTree, x_ndim: PyTree) -> tuple[int, ...]:
    """``batch_shape`` of the input of one step, whose leaves are (*B, *features)."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(x) if isinstance(x_ndim, int) else ():
        if jnp.ndim(leaf) < x_ndim:
            raise ValueError(
                f"{who}: x{jax.tree_util.keystr(path)} must be (*B, …) with {x_ndim} feature axes last, got shape "
                f"{jnp.shape(leaf)}; a single step has no time axis, but all axes of the features."
            )
    return sequence_shape(who, jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *jnp.shape(a)), bool), x), x_ndim)[1]


def check_tree(who: str, what: str, got: PyTree, expected: PyTree, fix: str) -> None:
    structures = [jax.tree.structure(tree) for tree in (got, expected)]
    if len(set(structures)) > 1:
        raise ValueError(f"{who}: {what} should be {_outline(expected)}, got {_outline(got)}; {fix}.")
    for (path, leaf), want in zip(*_with_paths(got, expected), strict=True):
        if jnp.shape(leaf) != jnp.shape(want):
            raise ValueError(f"{who}: {what}{path} should have shape {jnp.shape(want)}, got {jnp.shape(leaf)}; {fix}.")


def _with_paths(got: PyTree, expected: PyTree) -> tuple[list[tuple[str, Any]], list[Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(got)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves], jax.tree.leaves(expected)


def _outline(tree: PyTree) -> str:
    """A tree in words, its arrays as shapes: ``LSTMCarry(h=(4, 8), c=(4, 8))``."""
    if tree is None:
        return "None"
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        fields = ", ".join(f"{name}={_outline(value)}" for name, value in zip(tree._fields, tree, strict=True))
        return f"{type(tree).__name__}({fields})"
    if isinstance(tree, tuple | list):
        return f"{type(tree).__name__} of {len(tree)}: ({', '.join(map(_outline, tree))})"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{name!r}: {_outline(value)}" for name, value in tree.items()) + "}"
    return f"array {jnp.shape(tree)}" if hasattr(tree, "shape") else repr(tree)


def count_members(who: str, members: PyTree) -> int:
    """N, with which every leaf of an ensemble's members leads."""
    seen: dict[int, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(members):
        shape, name = jnp.shape(leaf), f"members{jax.tree_util.keystr(path)}"
        if not shape:
            raise ValueError(
                f"{who}: {name} is a scalar, but every array of members must lead with N, one entry a member; pass "
                f"what all members share as a further argument, or repeat it with jnp.broadcast_to."
            )
        seen.setdefault(shape[0], name)
    if len(seen) > 1:
        came = " and ".join(f"{size} in {name}" for size, name in seen.items())
        raise ValueError(
            f"{who}: every array of members must lead with the same N, got {came}; stack the members' trees with "
            f"jr.devices.stack_members, and pass what all share as a further argument."
        )
    if not seen or 0 in seen:
        raise ValueError(f"{who}: needs at least one member, got {'none' if seen else 'no array'}.")
    return next(iter(seen))


def check_members(who: str, members: list[PyTree]) -> None:
    """The trees of an ensemble's members have one structure, and their leaves one shape and dtype."""
    if not members:
        raise ValueError(f"{who}: needs at least one member, got none.")
    fix = "all members must be of one model; run different ones as ensembles of their own"
    for index, member in enumerate(members):
        check_tree(who, f"member {index}", member, members[0], fix)
        for (path, leaf), want in zip(*_with_paths(member, members[0]), strict=True):
            if jnp.result_type(leaf) != jnp.result_type(want):
                raise ValueError(
                    f"{who}: member {index}{path} is {jnp.result_type(leaf)} but that of member 0 is "
                    f"{jnp.result_type(want)}; cast it with .astype({str(jnp.result_type(want))!r})."
                )


def check_divides(who: str, what: str, size: int, devices: int) -> None:
    """A mesh divides what is sharded over it into equal parts."""
    if size % devices:
        fewer = max(d for d in range(1, devices) if size % d == 0)
        raise ValueError(
            f"{who}: {what}, {size}, cannot be divided among {devices} devices; give a multiple of {devices}, such as "
            f"{-(-size // devices) * devices}, or a mesh of {fewer} device{'s' if fewer > 1 else ''}."
        )


def check_batch_axis(who: str, name: str, shape: tuple[int, ...], axis: Any) -> None:
    """An array has the axis that is said to be its batch."""
    if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < len(shape):
        raise ValueError(
            f"{who}: expected batch_axis to name an axis of {name}, which has shape {shape}, got {axis!r}; arrays "
            f"(T, B, …) have batch_axis=1, arrays (B, …) have 0, and a tree of both takes a tree such as (1, 0)."
        )


def check_context_mesh(who: str, mesh: jax.sharding.Mesh) -> None:
    """A program on a mesh of its own runs where no other mesh is set."""
    context = jax.sharding.get_abstract_mesh()
    if not context.empty and context != mesh.abstract_mesh:
        raise ValueError(
            f"{who}: jax.set_mesh has set a mesh of other devices or axes, {context.axis_names}, than that of the "
            f"program, {mesh.axis_names}; pass that one as mesh=…, or call this outside of jax.set_mesh."
        )


def check_scalar_loss(who: str, value: Any, call: str = "loss(carry, ys)") -> None:
    """A loss is one float."""
    if not hasattr(value, "dtype") or value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        came = f"{value.dtype} of shape {value.shape}" if hasattr(value, "dtype") else _outline(value)
        fix = "take .mean() or .sum() of it" if hasattr(value, "dtype") else "compute it with jax.numpy"
        raise TypeError(f"{who}: {call} must give one floating-point number, got {came}; {fix}.")


def named_loss(who: str, loss: Callable[[PyTree, PyTree], Any]) -> Callable[[PyTree, PyTree], Any]:
    """The loss of an output and its target; where it raises, the error says on what."""

    def named(y: PyTree, target: PyTree) -> Any:
        try:
            return loss(y, target)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"{who}: loss(y, target) raises on y of {_outline(y)} and target of {_outline(target)}, of one step: "
                f"{str(error).rstrip('.')}; give targets that fit it, or another loss."
            ) from error

    return named


def check_finite(who: str, what: str, tree: PyTree, fix: str) -> None:
    """Arrays (T, …) hold neither NaN nor infinities; no check under ``jit`` and ``vmap``, where values are unknown."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        values = np.asarray(leaf.astype(accumulator(leaf.dtype)))
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
        if len(bad):
            when = f"at {len(bad)} of {len(values)} steps, first at {bad[0]}, last at {bad[-1]}"
            name = what + jax.tree_util.keystr(path)
            raise FloatingPointError(f"{who}: {name} is not finite{'' if len(values) == 1 else ' ' + when}; {fix}.")


def check_inexact_carry(who: str, carry: PyTree) -> None:
    """Every leaf of a carry can be differentiated by: real or complex numbers."""
    leaves = jax.tree_util.tree_leaves_with_path(carry)
    for path, leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"{who}: carry{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}, and there is no derivative by "
                f"what is not a float or a complex number; give a cell whose carry holds those alone (compute the rest "
                f"from a time that comes with xs, say)."
            )
    if not leaves:
        raise ValueError(f"{who}: the cell carries nothing, so no state depends on the one before.")
