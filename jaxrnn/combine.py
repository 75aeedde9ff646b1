"""Cells and layers put together: stack, chain, bidirectional, residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, Layer, PyTree, name_of, select
from jaxrnn._checks import check_choice, check_leads_with_batch, check_one_array
from jaxrnn._narrowing import as_lengths, as_start
from jaxrnn._spec import specified
from jaxrnn.running.scan import scan, valid_steps

Member = TypeVar("Member", Cell, Layer)


@specified
def stack(*members: Cell | Layer) -> Layer:
    """Layers on top of each other: each runs over the whole sequence and hands its outputs to the next.

    Args:
        members: Cells, which ``jr.scan`` lifts, and Layers (bidirectional ones, say), which stay as they are.

    Returns:
        A Layer whose params and carry are tuples with an entry for each member. ``lengths``, ``mask``, ``resets`` and
        ``start`` go to every member, ``key`` is folded with the member's place.

    Raises:
        ValueError: members that do not fit together, as soon as their sizes are known.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> model = jr.stack(jr.bidirectional(jr.gru(3, 4), jr.gru(3, 4)), jr.dropout(0.1), jr.lstm(8, 5))
        >>> carry, ys = model.apply(model.init(jax.random.key(0)), jnp.ones((7, 2, 3)))
        >>> ys.shape, len(carry)
        ((7, 2, 5), 3)
    """
    _check_members("stack", members)
    layers = [scan(member) if isinstance(member, Cell) else member for member in members]

    def init(key):
        return init_each(members, key)

    def initial_carry(params, batch_shape=()):
        check_entries("stack", "params", params, members)
        return tuple(layer.initial_carry(p, batch_shape) for layer, p in zip(layers, params, strict=True))

    def apply(params, xs, carry=None, *, key=None, **options):
        check_entries("stack", "params", params, members)
        if carry is not None:
            check_entries("stack", "carry", carry, members)
        final = []
        for index, layer in enumerate(layers):
            _check_arrives("stack", members, index, xs)
            own_key = None if key is None else jax.random.fold_in(key, index)
            own_carry = None if carry is None else carry[index]
            end, xs = layer.apply(params[index], xs, own_carry, key=own_key, **options)
            final.append(end)
        return tuple(final), xs

    first, last = members[0], members[-1]
    return Layer(init, initial_carry, apply, first.x_ndim, first.input_size, last.output_size)


@specified
def chain(*cells: Cell) -> Cell:
    """Cells on top of each other as one deep Cell: every step goes through all of them.

    ``jr.scan(jr.chain(a, b))`` computes what ``jr.stack(a, b)`` does, with the same params, carry and noise; as a Cell
    it can also be stepped by hand, for decoding and streaming.

    Args:
        cells: Cells; the output of each is the input of the next.

    Returns:
        A Cell whose params and carry are tuples with an entry for each cell.

    Raises:
        ValueError: cells that do not fit together. TypeError: a Layer among them.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.chain(jr.lstm(3, 4), jr.gru(4, 5), jr.readout(5, 2))
        >>> params = cell.init(jax.random.key(0))
        >>> carry, y = cell.step(params, cell.initial_carry(params), jnp.ones(3))
        >>> y.shape
        (2,)
    """
    _check_members("chain", cells)
    for index, cell in enumerate(cells):
        if not isinstance(cell, Cell):
            raise TypeError(
                f"chain: member {index} ({name_of(cell)}) is a Layer, which needs the whole sequence; "
                f"chain takes Cells, jr.stack takes both."
            )
    noisy = [cell.noise is not None for cell in cells]

    def init(key):
        return init_each(cells, key)

    def initial_carry(params, batch_shape=()):
        check_entries("chain", "params", params, cells)
        return tuple(cell.initial_carry(p, batch_shape) for cell, p in zip(cells, params, strict=True))

    def step(params, carry, x, noise=None):
        check_entries("chain", "params", params, cells)
        check_entries("chain", "carry", carry, cells)
        final = []
        for index, cell in enumerate(cells):
            _check_arrives("chain", cells, index, x)
            drawn = (noise[index],) if noise is not None and noisy[index] else ()
            end, x = cell.step(params[index], carry[index], x, *drawn)
            final.append(end)
        return tuple(final), x

    def noise(params, key, times, x):
        drawn = []
        for index, (cell, p) in enumerate(zip(cells, params, strict=True)):
            own_key = jax.random.fold_in(key, index)
            drawn.append(cell.noise(p, own_key, times, x) if cell.noise is not None else None)
            x = _output_of(cell, p, x)
        return tuple(drawn)

    first, last = cells[0], cells[-1]
    return Cell(
        init,
        initial_carry,
        step,
        noise=noise if any(noisy) else None,
        x_ndim=first.x_ndim,
        input_size=first.input_size,
        output_size=last.output_size,
    )


class BiParams(NamedTuple):
    forward: PyTree
    backward: PyTree


class BiCarry(NamedTuple):
    forward: PyTree  # after the last valid step
    backward: PyTree  # after the first valid step, where the backward run ends


def _with_dtype(a: jax.Array, kind: Any, dtype: Any) -> jax.Array:
    """``a`` in another dtype where its own is not of that kind."""
    return a if jnp.issubdtype(a.dtype, kind) else a.astype(dtype)


MERGES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "concat": lambda *both: jnp.concatenate(both, axis=-1),
    "sum": lambda *both: jnp.add(*(_with_dtype(a, jnp.number, jnp.int32) for a in both)),
    "mean": lambda *both: jnp.add(*(_with_dtype(a, jnp.inexact, jnp.float32) for a in both)) / 2,
    "product": jnp.multiply,
}


@specified
def bidirectional(
    forward: Cell,
    backward: Cell,
    *,
    merge: str | Callable[[PyTree, PyTree], PyTree] = "concat",
    run: Callable[..., Layer] = scan,
) -> Layer:
    """Two cells over the same sequence, the second in reverse, their outputs merged step by step.

        y_t = merge(forward_t, backward_t)

    Args:
        forward, backward: Cells, of the same kind or not.
        merge: "concat" (2H features), "sum" (of booleans how many are True, int32), "mean" (of integers and booleans
            float32), "product", or a function of the two outputs (T, *B, H). At steps that are not valid both are 0,
            and 0 stands in place of what the function makes of that; its derivative there by an array that it closes
            over has to be finite.
        run: what lifts a cell to a layer: called as ``run(forward)`` and ``run(backward, reverse=True)``.

    Returns:
        A Layer with ``BiParams(forward, backward)`` and ``BiCarry(forward, backward)``; the backward carry is the one
        after step 0. Each sequence's backward run starts at its own last valid step.

    Raises:
        ValueError, TypeError: an unknown merge, members that are not Cells, sizes that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.bidirectional(jr.lstm(3, 4), jr.gru(3, 5))
        >>> carry, ys = layer.apply(layer.init(jax.random.key(0)), jnp.ones((7, 2, 3)))
        >>> ys.shape
        (7, 2, 9)

    Differs from Keras, which pads the backward outputs with repeats and has no gaps in masks. There is no form that
    runs chunk by chunk: the backward half needs the end of the sequence first.

    Reference:
        Schuster & Paliwal, "Bidirectional recurrent neural networks", IEEE Transactions on Signal Processing 45, 1997.
    """
    for direction, cell in (("forward", forward), ("backward", backward)):
        if not isinstance(cell, Cell):
            raise TypeError(f"bidirectional: {direction} must be a Cell, got {type(cell).__name__}.")
    check_choice("bidirectional", "merge", merge, MERGES, or_function=True)
    merge_outputs = merge if callable(merge) else MERGES[merge]
    if None not in (forward.input_size, backward.input_size) and forward.input_size != backward.input_size:
        raise ValueError(
            f"bidirectional: forward ({name_of(forward)}) has input_size={forward.input_size} but backward "
            f"({name_of(backward)}) has input_size={backward.input_size}; both read the same sequence, give them one."
        )

    def check_sizes_for_merge(ahead, back):
        if merge in ("sum", "mean", "product") and ahead != back:
            raise ValueError(
                f"bidirectional: merge={merge!r} needs outputs of one size, got {ahead} forward and {back} backward; "
                f'give both cells the same hidden_size, or merge="concat".'
            )

    sizes = (forward.output_size, backward.output_size)
    if None not in sizes:
        check_sizes_for_merge(*sizes)
    ahead, back = run(forward), run(backward, reverse=True)

    def init(key):
        return BiParams(*init_each((forward, backward), key))

    def initial_carry(params, batch_shape=()):
        _check_pair("params", params, BiParams)
        return BiCarry(
            ahead.initial_carry(params.forward, batch_shape), back.initial_carry(params.backward, batch_shape)
        )

    def apply(params, xs, carry=None, *, key=None, **options):
        _check_pair("params", params, BiParams)
        if carry is None:
            carry = BiCarry(None, None)
        _check_pair("carry", carry, BiCarry)
        k_ahead, k_back = (None, None) if key is None else (jax.random.fold_in(key, i) for i in range(2))
        end_ahead, ys_ahead = ahead.apply(params.forward, xs, carry.forward, key=k_ahead, **options)
        end_back, ys_back = back.apply(params.backward, xs, carry.backward, key=k_back, **options)
        if not callable(merge):
            check_outputs_for_merge("bidirectional", merge, (ys_ahead, ys_back))
            check_sizes_for_merge(ys_ahead.shape[-1], ys_back.shape[-1])
        ys = merge_outputs(ys_ahead, ys_back)
        if callable(merge):  # the merges with a name make 0 of zeros by themselves
            ys = zeroed_padding("bidirectional", ys, xs, **options)
        return BiCarry(end_ahead, end_back), ys

    if callable(merge) or None in sizes:
        size = None
    else:
        size = sum(sizes) if merge == "concat" else sizes[0]  # type: ignore[arg-type]
    return Layer(init, initial_carry, apply, forward.x_ndim, forward.input_size or backward.input_size, size)


@specified
def residual(inner: Member) -> Member:
    """A skip connection around a cell or a layer: ``y = x + inner(x)``.

    Args:
        inner: a Cell or a Layer whose output has the shape of its input.

    Returns:
        The kind that was given, with the same params and carry. On steps that are not valid the output is 0.

    Raises:
        ValueError: sizes that differ. TypeError: outputs of a kind that cannot hold the sum: booleans, integers where x
            is fractions, real numbers where it is complex.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> model = jr.stack(jr.lstm(3, 8), jr.residual(jr.lstm(8, 8)))
        >>> carry, ys = model.apply(model.init(jax.random.key(0)), jnp.ones((7, 3)))
        >>> ys.shape
        (7, 8)

    Reference:
        He et al., "Deep residual learning for image recognition", CVPR 2016.
    """
    _check_members("residual", (inner,))
    if None not in (inner.input_size, inner.output_size) and inner.input_size != inner.output_size:
        raise ValueError(
            f"residual: {name_of(inner)} maps {inner.input_size} features to {inner.output_size}, so x + y has no "
            f"meaning; build it with output features equal to its input features."
        )

    def add(x, y):
        for what, a in (("x", x), (f"the output of {name_of(inner)}", y)):
            check_one_array("residual", what, a)
        if jnp.shape(x) != jnp.shape(y):
            raise ValueError(
                f"residual: {name_of(inner)} turned {jnp.shape(x)} into {jnp.shape(y)}, so x + y has no meaning; "
                f"build it with output features equal to its input features."
            )
        kinds = (jnp.integer, jnp.floating, jnp.complexfloating)  # each holds the ones before it
        of_x, of_y = (next((n for n, kind in enumerate(kinds) if jnp.issubdtype(a.dtype, kind)), -1) for a in (x, y))
        if of_y < max(of_x, 0):
            raise TypeError(
                f"residual: {name_of(inner)} turned {x.dtype} into {y.dtype}, which cannot hold x + y; let it put out "
                f"{'numbers' if of_x < 0 else x.dtype}."
            )
        return x.astype(y.dtype) + y

    if isinstance(inner, Cell):

        def step(params, carry, x, *noise):
            carry, y = inner.step(params, carry, x, *noise)
            return carry, add(x, y)

        return inner._replace(step=step)

    def apply(params, xs, carry=None, **options):
        carry, ys = inner.apply(params, xs, carry, **options)
        on = _valid_steps("residual", xs, **options)
        return carry, add(xs if on is None else select(on, xs, jnp.zeros_like(xs)), ys)

    return inner._replace(apply=apply)


def check_outputs_for_merge(who: str, merge: str, outputs: tuple[PyTree, ...]) -> None:
    """What a merge with a name is given are arrays, not trees of them."""
    for index, ys in enumerate(outputs):
        check_one_array(who, f"the output of member {index}", ys, f"merge={merge!r} takes arrays, give it a function")


def zeroed_padding(who: str, merged: PyTree, xs: PyTree, **options: Any) -> PyTree:
    """What a merge made of the outputs of layers that were given these options: 0 where a step is not valid."""
    on = _valid_steps(who, xs, **options)
    if on is None:
        return merged
    check_leads_with_batch(who, "what merge returned", merged, on.shape)
    return select(on, merged, jax.tree.map(jnp.zeros_like, merged))


def _valid_steps(
    who: str, xs: PyTree, *, lengths: Any = None, mask: Any = None, start: Any = 0, **others: Any
) -> jax.Array | None:
    """(T, *B): which steps of a run over xs are valid, by the options that its layers were given; None: all."""
    T = jax.tree.leaves(xs)[0].shape[0]
    lengths = None if lengths is None else as_lengths(who, lengths)
    mask = None if mask is None else jnp.asarray(mask)
    return valid_steps(as_start(who, start, T) + jnp.arange(T, dtype=jnp.int32), lengths, mask)


def check_kinds(who: str, members: tuple[Any, ...]) -> None:
    """There are members, and they are Cells and Layers."""
    if not members:
        raise ValueError(f"{who}: needs at least one member, got none.")
    for index, member in enumerate(members):
        if not isinstance(member, Cell | Layer):
            raise TypeError(f"{who}: member {index} must be a Cell or a Layer, got {type(member).__name__}.")


def _check_members(who: str, members: tuple[Any, ...]) -> None:
    check_kinds(who, members)
    for index in range(1, len(members)):
        _check_fits(who, members, index, members[index - 1].output_size)


def _check_fits(who: str, members: tuple[Any, ...], index: int, size: int | None) -> None:
    """Member ``index`` takes the ``size`` features that the member before it puts out."""
    member, before = members[index], members[index - 1]
    if None not in (size, member.input_size) and size != member.input_size:
        raise ValueError(
            f"{who}: layer {index} ({name_of(member)}) expects input_size={member.input_size} but layer {index - 1} "
            f"({name_of(before)}) outputs {size}; build it with input_size={size}."
        )


def _check_arrives(who: str, members: tuple[Any, ...], index: int, x: PyTree) -> None:
    """The same for what really comes, where sizes were not known before (a user's own cell)."""
    if index > 0 and members[index].x_ndim == 1 and hasattr(x, "shape") and x.ndim > 0:
        _check_fits(who, members, index, x.shape[-1])


def check_entries(who: str, what: str, tree: PyTree, members: tuple[Any, ...]) -> None:
    """Params or a carry is a tuple with an entry for each member."""
    if not isinstance(tree, tuple) or hasattr(tree, "_fields") or len(tree) != len(members):
        came = f"{type(tree).__name__} of {len(tree)}" if isinstance(tree, tuple) else type(tree).__name__
        raise ValueError(
            f"{who}: {what} must be a tuple with an entry for each of the {len(members)} members "
            f"({', '.join(map(name_of, members))}), got {came}; pass what this {who}'s own "
            f"{'init' if what == 'params' else 'initial_carry'} returned."
        )


def _check_pair(what: str, pair: PyTree, kind: type) -> None:
    if not isinstance(pair, kind):
        raise ValueError(
            f"bidirectional: {what} must be {kind.__name__}(forward, backward), got {type(pair).__name__}; "
            f"pass what this layer's own {'init' if what == 'params' else 'initial_carry'} returned."
        )


def init_each(members: tuple[Any, ...], key: jax.Array) -> tuple[PyTree, ...]:
    """Params of each member, from a key of its own."""
    return tuple(member.init(k) for member, k in zip(members, jax.random.split(key, len(members)), strict=True))


def _output_of(cell: Cell, params: PyTree, x: PyTree) -> PyTree:
    """What a cell makes of one step's input, as shapes and dtypes."""

    def one_step(params, x):
        lead = jax.tree.leaves(x)[0]
        carry = cell.initial_carry(params, lead.shape[: lead.ndim - jax.tree.leaves(cell.x_ndim)[0]])
        return cell.step(params, carry, x)[1]

    return jax.eval_shape(one_step, params, x)
