"""The Cell that a decoder becomes once its memory is bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree, is_float, name_of
from jaxrnn._checks import check_batch_shape, check_carry, check_features, check_one_array
from jaxrnn._dtypes import accumulator, carry_dtype, product, promoted
from jaxrnn.attention.attend import Attended
from jaxrnn.attention.attention import Attention


class DecoderParams(NamedTuple):
    cell: PyTree
    attention: PyTree
    W_c: jax.Array | None  # (M + H, H), of form="luong"


class DecoderCarry(NamedTuple):
    cell: PyTree  # the cell's own carry
    fed: jax.Array | None  # (*B, H): h~_{t-1}, which the next step reads; None where that is not fed back
    attention: PyTree  # the state of the attention; () where it has none


class DecoderGates(NamedTuple):
    weights: jax.Array  # (*B, S): where the step looked
    context: jax.Array  # (*B, M): what it found
    cell: PyTree  # the new carry, as DecoderCarry has it
    fed: jax.Array | None
    attention: PyTree
    gates: Any  # those of the cell; () where it has none


class Attending(NamedTuple):
    """A decoder, as its factory has checked it."""

    cell: Cell
    attention: Attention
    form: str  # "luong" or "bahdanau"
    input_feeding: bool
    dtype: Any  # of the product with W_c
    input_size: int | None  # of x

    @property
    def found_size(self) -> int:
        """The features of what attention finds, as the cell reads it: of h~, or of the context."""
        size = self.attention.query_size if self.form == "luong" else self.attention.memory_size
        assert size is not None  # the factory has seen to it
        return size


def bound_cell(decoder: Attending, keys: PyTree, batch: tuple[int, ...], check_params: Callable[[Any], None]) -> Cell:
    """A Cell closed over what the attention prepared of a memory.

    Args:
        decoder: what is bound.
        keys: what ``attention.prepare`` returned.
        batch: ``*B`` of the memory. The cell's own may have further axes ``*W`` after these.
        check_params: raises where params are not the decoder's.
    """
    cell, attention, form, input_feeding, dtype, input_size = decoder

    def initial_carry(params, batch_shape=()):
        check_params(params)
        check_batch_shape("decoder", batch_shape)
        batch_shape = tuple(batch_shape)
        if batch_shape[: len(batch)] != batch:
            raise ValueError(
                f"decoder: memory was bound with the batch axes {batch}, but the batch is {batch_shape}; bind the "
                f"memory of these sequences. A batch may have further axes after the memory's, as beams do."
            )

        def repeated(a):
            own = a.shape[len(batch) :]
            a = a.reshape(*batch, *(1,) * (len(batch_shape) - len(batch)), *own)
            return jnp.broadcast_to(a, (*batch_shape, *own))

        state = () if attention.initial_state is None else attention.initial_state(params.attention, keys)
        fed = None
        if form == "luong" and input_feeding:
            fed = jnp.zeros((*batch_shape, decoder.found_size), carry_dtype(params.W_c, dtype))
        return DecoderCarry(cell.initial_carry(params.cell, batch_shape), fed, jax.tree.map(repeated, state))

    def check(params, carry, x):
        check_params(params)
        check_one_array("decoder", "x", x)
        if cell.x_ndim == 1 and input_size is not None:
            check_features("decoder", x, input_size)
        batch_shape = jnp.shape(x)[: jnp.ndim(x) - cell.x_ndim]
        wanted = jax.eval_shape(lambda p: initial_carry(p, batch_shape), params)
        check_carry("decoder", carry, wanted, batch_shape)

    def attend(params, state, query):
        _check_query(decoder, query)
        one = attention.attend
        for _ in range(query.ndim - 1 - len(batch)):  # *W: the same memory for each entry
            one = jax.vmap(one, in_axes=(None, None, len(batch), len(batch)), out_axes=len(batch))
        state, attended = one(params.attention, keys, state, query)
        _check_attended(decoder, attended, query)
        return state, *attended

    def by_new_output(params, carry, x, *noise):
        read = _joined(x, carry.fed) if input_feeding else x
        inner, h = _stepped(cell, params.cell, carry.cell, read, *noise)
        state, c, α = attend(params, carry.attention, h)
        both = jnp.concatenate([a.astype(promoted(c.dtype, h.dtype)) for a in (c, h)], axis=-1)
        attentional = jnp.tanh(product(jnp.dot, both, params.W_c, dtype))  # h~
        new = DecoderCarry(inner, attentional if input_feeding else None, state)
        return new, attentional.astype(h.dtype), (α, c, read)

    def by_state_before(params, carry, x, *noise):
        state, c, α = attend(params, carry.attention, _state_in(cell, carry.cell, jnp.ndim(x) - cell.x_ndim))
        read = _joined(x, c) if input_feeding else x
        inner, h = _stepped(cell, params.cell, carry.cell, read, *noise)
        return DecoderCarry(inner, None, state), jnp.concatenate([h, c.astype(h.dtype)], axis=-1), (α, c, read)

    advance = by_new_output if form == "luong" else by_state_before

    def step(params, carry, x, *noise):
        check(params, carry, x)
        carry, y, _ = advance(params, carry, x, *noise)
        return carry, y

    def gates(params, carry, x):
        check(params, carry, x)
        new, _, (α, c, read) = advance(params, carry, x)
        inner = cell.gates(params.cell, carry.cell, read) if cell.gates else ()
        return DecoderGates(α, c, new.cell, new.fed, new.attention, inner)

    def noise(params, key, times, x):
        read = (
            x if not input_feeding else jax.ShapeDtypeStruct((*x.shape[:-1], x.shape[-1] + decoder.found_size), x.dtype)
        )
        return cell.noise(params.cell, key, times, read)  # type: ignore[misc]  # None where it is not used

    return Cell(
        cell.init,
        initial_carry,
        step,
        gates=gates,
        noise=noise if cell.noise else None,
        x_ndim=cell.x_ndim,
        input_size=input_size,
    )


def _check_query(decoder: Attending, query: jax.Array) -> None:
    Q = decoder.attention.query_size
    if query.shape[-1] != Q:
        raise ValueError(
            f"decoder: attention has query_size={Q}, but {name_of(decoder.cell)} asks with {query.shape[-1]} features; "
            f"build the attention with query_size={query.shape[-1]}."
        )


def _check_attended(decoder: Attending, attended: Attended, query: jax.Array) -> None:
    """A user's own attention returns a context (*B, M), and weights that lead with *B."""
    context, weights = attended
    expected = (*query.shape[:-1], decoder.attention.memory_size)
    if jnp.shape(context) != expected:
        raise ValueError(
            f"decoder: attention must return a context (*B, M), here {expected}, got shape {jnp.shape(context)}."
        )
    if jnp.shape(weights)[:-1] != expected[:-1]:
        raise ValueError(
            f"decoder: attention must return weights (*B, S), here {(*expected[:-1], 'S')}, got shape "
            f"{jnp.shape(weights)}."
        )


def _stepped(cell: Cell, params: PyTree, carry: PyTree, x: PyTree, *noise: PyTree) -> tuple[PyTree, jax.Array]:
    carry, h = cell.step(params, carry, x, *noise)
    check_one_array("decoder", f"the output of {name_of(cell)}", h)
    return carry, h


def _joined(x: jax.Array, found: jax.Array) -> jax.Array:
    """[x, found] in the dtype of x, which must hold what was found."""
    if promoted(accumulator(x.dtype), found.dtype) != accumulator(x.dtype):
        raise TypeError(
            f"decoder: attention found {found.dtype} in the memory, but x is {x.dtype}, and joining them would drop "
            f"digits; cast one of the two."
        )
    return jnp.concatenate([x, found.astype(x.dtype)], axis=-1)


def _state_in(cell: Cell, carry: PyTree, batch_ndim: int) -> jax.Array:
    """The state by which Bahdanau's form asks."""
    h = _last_state(carry)
    if not hasattr(h, "shape") or not is_float(h) or (cell.x_ndim <= 1 and jnp.ndim(h) != batch_ndim + 1):
        came = f"{h.dtype} of shape {jnp.shape(h)}" if hasattr(h, "shape") else type(carry).__name__
        raise TypeError(
            f"decoder: cell ({name_of(cell)}) must have a carry that is one array of floats (*B, H), or has such an h, "
            f"for form='bahdanau', which attends by it, got {came}; name the state h in a NamedTuple, or use "
            f"form='luong', which attends by the output."
        )
    return h


def _last_state(carry: PyTree) -> Any:
    if hasattr(carry, "h"):
        return carry.h
    if isinstance(carry, Mapping):
        return carry.get("h")
    if hasattr(carry, "_fields"):  # of a wrapper, of another decoder: that of the cell inside. Else any field might do
        return _last_state(getattr(carry, "cell", None))
    if not isinstance(carry, tuple):
        return carry
    states = [_last_state(entry) for entry in carry if jax.tree.leaves(entry)]
    return states[-1] if states else None
