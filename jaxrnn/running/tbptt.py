"""Truncated back-propagation through time: the values of the whole run, gradients that reach back a bounded way."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree, flatten, name_of
from jaxrnn._checks import check_has_number
from jaxrnn._narrowing import as_start
from jaxrnn._spec import Spec, specified
from jaxrnn.devices.placement import vary_alike
from jaxrnn.instruments import PerStep, refuse_marks
from jaxrnn.programs.tracing import inner_programs
from jaxrnn.running.scan import as_layer, check_inputs


@specified
@checks_arguments
def tbptt(model: Cell | Layer, *, window: int, stride: int | None = None, checkpoint: bool = False) -> Layer:
    """Truncated back-propagation through time, BPTT(h; h') with h = ``window`` and h' = ``stride``.

        block k     the steps k·stride … (k + 1)·stride - 1; the last one may be shorter
        forward     carry_t, y_t = step(params, carry_{t-1}, x_t), exactly as without truncation
        backward    ∂y_t/∂(params, x, carry) for t in block k is taken along the steps from
                    k·stride - (window - stride) on; the carry that enters there counts as a constant

    With ``stride = window`` the gradient is the sum of the blocks', each started from a detached carry. Blocks that
    reach time 0 see the initial carry, learned or given, undetached; ``window >= T`` is full BPTT. The final carry
    belongs to the last block. A reset starts from ``initial_carry(params)`` undetached, as ever.

    Args:
        model: a Cell, which ``jr.scan`` lifts, or a Layer that runs forward: ``jr.scan``, ``jr.stack`` of them … A
            Layer of your own must compute chunk by chunk, handing on the carry and ``start``, what it computes whole.
        window: how many steps back, at most, the outputs of a block reach, counted from the block's end.
        stride: the steps of a block; None means ``window``.
        checkpoint: keep between forward and backward pass no more than the carries between blocks, and compute
            each block anew in the backward pass: memory for one block in place of T steps, for one more forward run.

    Returns:
        A Layer with the init, initial_carry and ``apply`` of the layer given; ``jr.scan`` documents the arguments.
        With ``stride = window`` nothing is computed twice; with a larger window every block computes the
        ``window - stride`` steps before it again, so evaluate with the layer itself. Where ``jit`` shards the batch
        over a mesh, the weights' gradients are summed over devices once a block (in ``shard_map``, once).

    Raises:
        ValueError, TypeError: a window or stride that is not a positive int, a window shorter than the stride; layers
            that run in reverse or in both directions, which have no forward chunks (a Layer without spec is looked
            through while tracing).

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.tbptt(jr.elman(3, 5), window=4, stride=2)
        >>> params, xs = layer.init(jax.random.key(0)), jnp.ones((10, 2, 3))
        >>> by_xs = jax.grad(lambda xs: layer.apply(params, xs)[1][8:].sum())(xs)
        >>> bool((by_xs[:6] == 0).all()), bool((by_xs[6:] != 0).any())
        (True, True)

    Differs from Williams & Peng by what becomes of the end: where T is not a multiple of ``stride``, the shorter last
    block reaches back as far before its first step as every other.

    Reference:
        Williams & Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
        trajectories", Neural Computation 2, 1990.
    """
    layer = as_layer("tbptt", model)
    stride = window if stride is None else stride
    if window < stride:
        raise ValueError(
            f"tbptt: window={window} is shorter than stride={stride}, so the first steps of a block would not reach "
            f"its last; give window >= stride (window = stride detaches the carry between blocks)."
        )
    if model.spec is not None:
        _check_forward(name_of(model), model.spec)
    overlap = window - stride
    # The first blocks, those that reach time 0, are one segment: `ahead` steps, then `overlap` steps, which the first
    # truncated block reads again. From there on, every window is `stride` steps, then `overlap` steps.
    first = (overlap // stride + 1) * stride
    ahead = first - overlap

    def apply(params, xs, carry=None, *, lengths=None, mask=None, resets=None, key=None, start=0):
        T, _, (lengths, mask, resets) = check_inputs("tbptt", layer, xs, lengths, mask, resets)
        check_has_number("tbptt", f"window={window}", T)
        start = as_start("tbptt", start, T)
        refuse_marks(
            "tbptt",
            "gradient flow is measured on whole runs, not on truncated ones; give gradient_flow the layer itself.",
            params,
            carry,
        )
        params, xs = vary_alike(params, xs)  # here, or shard_map would sum gradients over devices at every block
        per_step = any(isinstance(a, PerStep) for a in flatten(params, lambda a: isinstance(a, PerStep))[0])
        sequence = (params if per_step else None, xs, mask, None if resets is None else resets[:T])

        def run(carry, part, start):
            own, xs, mask, resets = part
            options = {"lengths": lengths, "mask": mask, "resets": resets, "key": key, "start": start}
            return layer.apply(params if own is None else own, xs, carry, **options)

        if model is layer and model.spec is None:
            _check_trace_forward(jax.make_jaxpr(run)(carry, sequence, start).jaxpr)
        if window >= T:
            return run(carry, sequence, start)

        def run_window(carry, part, start, steps):
            """``(the carry after some steps, detached; the carry at the end; the outputs)``"""
            carry, ys = run(carry, _part(part, 0, steps), start)
            handed_on = jax.lax.stop_gradient(carry)
            if overlap == 0:
                return handed_on, carry, ys
            carry, rest = run(carry, _part(part, steps, None), start + steps)
            return handed_on, carry, _join(ys, rest)

        def run_block(state, block):
            handed_on, _, before = state
            index, steps = block
            part = _join(before, steps)
            handed_on, end, ys = run_window(handed_on, part, start + ahead + index * stride, stride)
            return (handed_on, end, _part(part, stride, None)), _part(ys, overlap, None)

        handed_on, end, ys = run_window(carry, _part(sequence, 0, first), start, ahead)
        before, outputs = _part(sequence, ahead, first), [ys]
        count, ragged = divmod(T - first, stride)
        if count:
            blocks = jax.tree.map(
                lambda a: a.reshape(count, stride, *a.shape[1:]), _part(sequence, first, first + count * stride)
            )
            body = jax.checkpoint(run_block, prevent_cse=False) if checkpoint else run_block
            (handed_on, end, before), ys = jax.lax.scan(
                body, (handed_on, end, before), (jnp.arange(count, dtype=jnp.int32), blocks)
            )
            outputs.append(jax.tree.map(lambda a: jax.lax.collapse(a, 0, 2), ys))
        if ragged:
            part = _join(before, _part(sequence, T - ragged, None))
            end, ys = run(handed_on, part, start + T - ragged - overlap)
            outputs.append(_part(ys, overlap, None))
        return end, _join(*outputs)

    return layer._replace(apply=apply)


def _part(tree: PyTree, first: int, last: int | None) -> PyTree:
    return jax.tree.map(lambda a: jnp.asarray(a)[first:last], tree)


def _join(*trees: PyTree) -> PyTree:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *trees)


def _check_forward(who: str, spec: Spec) -> None:
    if spec.kind == "bidirectional" or dict(spec.options).get("reverse"):
        raise ValueError(_no_chunks(who, "runs in both directions" if spec.kind == "bidirectional" else "is reversed"))
    for child in spec.children:
        _check_forward(f"{child.kind} in {who}", child)


def _check_trace_forward(jaxpr: Any) -> None:
    """No loop of a traced run goes backwards; what loops do inside one step is not looked at."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan" and eqn.params["reverse"]:
            raise ValueError(_no_chunks("a user layer", "holds a reversed scan over time"))
        if eqn.primitive.name not in ("scan", "while"):
            for inner in inner_programs(eqn.params):
                _check_trace_forward(inner)


def _no_chunks(who: str, why: str) -> str:
    return (
        f"tbptt: expected a model that runs forward, but {who} {why}, so that what it carries cannot be handed from "
        f"block to block; wrap the forward layers alone, as in jr.stack(jr.tbptt(a, window=…), b)."
    )
