"""``jr.check_cell``: a user's own cell, held to what the library takes for granted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree, expect_cell, flatten, is_float, name_of
from jaxrnn._checks import check_carry_kept, check_leads_with_batch, check_pair, check_params, sequence_shape
from jaxrnn.running.scan import scan


@checks_arguments
def check_cell(cell: Cell, params: PyTree, xs: PyTree) -> None:
    """Hold a cell of your own to the contract of :class:`Cell`, and say in words what it breaks.

        batch shapes    (), (B,) and (B1, B2), each sequence by itself
        params          those given are like those of ``init``
        kept            the carry's structure, shapes and dtypes, from step to step
        sizes           ``output_size``, where it is said, is that of the output
        purity          the same arguments give the same results; no value of a trace is kept
        loop            ``jr.scan`` gives what a Python loop over ``step`` gives, with noise too
        chunks          a run cut in two gives the whole run, noise by absolute time too
        padding         masked steps do not reach the gradients, whatever stands in them
        gates           a NamedTuple; those that are named as the carry's fields are the new carry

    Runs agree where they do to half the digits of their dtype, so what is mixed by less than that is not seen.

    Args:
        cell: a Cell.
        params: its parameters, such as ``cell.init(key)`` gives.
        xs: (T, *B, I), inputs as the cell is used with: a few steps, at least 2, of a few sequences are enough, but no
            two of them alike, which would hide what is mixed.

    Returns:
        None, where every rule holds. Noise is drawn from ``jax.random.key(0)``.

    Raises:
        ValueError: with a line for each rule that is broken, and how to fix it. Where a single step breaks one, the
            runs are not tried, as all would fail. TypeError: no Cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> def step(params, h, x):
        ...     h = (0.9 * h + x).astype("bfloat16")  # the carry was float32
        ...     return h, h
        >>> cell = jr.Cell(lambda key: (), lambda params, batch_shape=(): jnp.zeros((*batch_shape, 3)), step)
        >>> try:
        ...     jr.check_cell(cell, (), jnp.ones((4, 2, 3)))
        ... except ValueError as error:
        ...     print(str(error).splitlines()[1].partition(";")[0])
        1. kept: step turned carry from float32 into bfloat16
    """
    who = "check_cell"
    expect_cell(who, cell, if_layer="give the Cell that it runs")
    T, batch_shape = sequence_shape(who, xs, cell.x_ndim)
    if T < 2 or 0 in batch_shape:
        raise ValueError(
            f"{who}: xs has {T} steps and the batch shape {batch_shape}, which show too little; give at least 2 steps "
            f"of at least one sequence."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(xs):
        if is_float(leaf) and not bool(jnp.isfinite(leaf).all()):
            raise ValueError(
                f"{who}: xs{jax.tree_util.keystr(path)} is not finite, and of NaN nothing can be told; give others."
            )
    subject = _Subject(cell, params, _sequences(xs, T, batch_shape), T)
    for rules in _RULES:
        found: dict[str, None] = {}  # an ordered set: rules may break for one reason
        for rule in rules:
            try:
                found |= dict.fromkeys(rule(subject))
            except Exception as error:  # whatever the user's functions raise is what they are checked for
                found[f"{rule.__name__[1:].replace('_', ' ')}: {_first_line(error)}"] = None
        if found:
            lines = "\n".join(f"{n}. {text.rstrip('.')}." for n, text in enumerate(found, 1))
            rules_broken = f"{len(found)} rule{'s' if len(found) > 1 else ''}"
            raise ValueError(f"{who}: {name_of(cell)} breaks {rules_broken} of a Cell:\n{lines}")


class _Subject(NamedTuple):
    """What is checked. Inputs are a batch of at least two different sequences."""

    cell: Cell
    params: PyTree
    xs: PyTree  # (T, N, …)
    T: int

    @property
    def N(self) -> int:
        return jax.tree.leaves(self.xs)[0].shape[1]

    @property
    def key(self) -> jax.Array:
        return jax.random.key(0)

    def at(self, t: int) -> PyTree:
        return jax.tree.map(lambda a: a[t], self.xs)

    def draw(self, times: Any) -> PyTree:
        """The cell's noise at these times."""
        assert self.cell.noise is not None
        x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self.at(0))
        return self.cell.noise(self.params, self.key, jnp.asarray(times, jnp.int32), x)

    def run(self, xs: PyTree, carry: PyTree = None, *, plan: str = "plain", **options: Any) -> tuple[PyTree, PyTree]:
        return scan(self.cell, plan=plan).apply(self.params, xs, carry, **options)


def _sequences(xs: PyTree, T: int, batch_shape: tuple[int, ...]) -> PyTree:
    """(T, N, …) with N of at least 2: one sequence alone has itself, last step first, at its side."""

    def batch(a):
        a = jnp.asarray(a)
        a = a.reshape(T, math.prod(batch_shape), *a.shape[1 + len(batch_shape) :])
        return a if a.shape[1] > 1 else jnp.concatenate([a, a[::-1]], axis=1)

    return jax.tree.map(batch, xs)


def _batches(s: _Subject) -> Iterator[tuple[tuple[int, ...], PyTree]]:
    """The sequences under each batch shape: the first alone, all, and all in two rows, the second last step first."""
    yield (), jax.tree.map(lambda a: a[:, 0], s.xs)
    yield (s.N,), s.xs
    yield (2, s.N), jax.tree.map(lambda a: jnp.stack([a, a[::-1]], axis=1), s.xs)


# ---- one step ----------------------------------------------------------------------------------------


def _params_of_init(s: _Subject) -> Iterator[str]:
    """``init`` runs, and gives parameters like those that were given."""
    try:
        expected = jax.eval_shape(s.cell.init, s.key)
    except Exception:
        try:
            s.cell.init(s.key)  # not every init can be traced
        except Exception as error:
            yield f"params: init raised {_first_line(error)}; it must give params of any key"
        return
    try:
        check_params("params", s.params, expected)
    except ValueError as error:
        yield str(error)


def _kept(s: _Subject) -> Iterator[str]:
    raised: dict[str, tuple[str, Exception]] = {}  # by batch shape, which function
    for batch_shape, xs in _batches(s):
        at, called = f"with the batch shape {batch_shape} ", "initial_carry"
        try:
            carry = s.cell.initial_carry(s.params, batch_shape)
            called = "step"
            x = jax.tree.map(lambda a: a[0], xs)
            returned = jax.eval_shape(lambda x, carry: s.cell.step(s.params, carry, x), x, carry)
        except Exception as error:  # whatever the user's functions raise
            raised[at] = called, error
            continue
        try:
            check_leads_with_batch("batch shapes", f"{at}initial_carry()", carry, batch_shape)
            new, y = check_pair("kept", returned)
            check_carry_kept("kept", carry, new)
            check_leads_with_batch("batch shapes", f"{at}the output of step", y, batch_shape)
        except (TypeError, ValueError) as error:
            yield str(error)
            continue
        size = s.cell.output_size
        if size is not None and hasattr(y, "shape") and y.shape[-1:] != (size,):
            yield f"sizes: output_size is {size}, but the output of step has the shape {y.shape}; correct one of them"
    if any(isinstance(why, _NOT_TRACED) for _, why in raised.values()) or len(raised) == 3:
        called, why = next(iter(raised.values()))
        yield f"runs: {called} raised {_first_line(why)}{_how_to_run(s, why)}"
        return
    for at, (called, why) in raised.items():
        yield (
            f"batch shapes: {at}{called} raised {_first_line(why)}; write it for any number of batch axes: "
            f"(*batch_shape, H), x[..., i], axis=-1"
        )


_NOT_TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)


def _how_to_run(s: _Subject, error: Exception) -> str:
    """How to fix a function that runs under no batch shape, where that can be told."""
    if isinstance(error, _NOT_TRACED):
        return "; it is traced, so let nothing depend on values: no Python if on them, no NumPy on x or the carry"
    if s.cell.noise is not None and isinstance(error, TypeError) and "argument" in str(error):
        return "; a cell with noise has step(params, carry, x, noise=None), None being evaluation"
    return ""


def _purity(s: _Subject) -> Iterator[str]:
    x = s.at(0)
    calls: dict[str, Callable[[], PyTree]] = {
        "init": lambda: s.cell.init(s.key),
        "initial_carry": lambda: s.cell.initial_carry(s.params, (s.N,)),
        "step": lambda: s.cell.step(s.params, s.cell.initial_carry(s.params, (s.N,)), x),
    }
    if s.cell.noise is not None:
        calls["noise"] = lambda: s.draw(range(s.T))
    for name, call in calls.items():
        try:
            difference = _difference(call(), call(), exact=True)
        except Exception as error:  # whatever the user's functions raise
            yield f"purity: {name} raised {_first_line(error)}{_how_to_run(s, error)}"
            continue
        if difference:
            yield (
                f"purity: {name}, called again with the same arguments, gives something else ({difference}); what "
                f"changes from step to step belongs into the carry, what is random into noise"
            )


def _leaks(s: _Subject) -> Iterator[str]:
    x, carry = s.at(0), s.cell.initial_carry(s.params, (s.N,))

    def trace() -> None:
        jax.eval_shape(lambda x, carry: s.cell.step(s.params, carry, x), x, carry)

    trace()  # what it raises is no leak
    try:
        with jax.checking_leaks():
            trace()
    except Exception:  # JAX's own, or an IndexError where it looks for a name of what leaked
        yield (
            "purity: step keeps a value of the trace that it was called in (a tracer) beyond its return, in a list, an "
            "attribute or a global; return it as y, or carry it"
        )


# ---- the runs --------------------------------------------------------------------------------------


def _loop(s: _Subject) -> Iterator[str]:
    for noisy in (False, True)[: 1 + (s.cell.noise is not None)]:
        noise = s.draw(range(s.T)) if noisy else None
        carry, ys = s.cell.initial_carry(s.params, (s.N,)), []
        for t in range(s.T):
            drawn = (jax.tree.map(lambda a, t=t: a[t if a.shape[0] == s.T else 0], noise),) if noisy else ()
            carry, y = s.cell.step(s.params, carry, s.at(t), *drawn)
            ys.append(y)
        by_hand = carry, jax.tree.map(lambda *a: jnp.stack(a), *ys)
        difference = _difference(s.run(s.xs, plan="auto", key=s.key if noisy else None), by_hand)
        if difference:
            yield (
                f"loop: jr.scan gives something else than a Python loop over step{' with noise' if noisy else ''} "
                f"({difference}); step must compute the same when it is traced: no Python if on values, no NumPy on x"
            )


def _batch_shapes(s: _Subject) -> Iterator[str]:
    (alone, one), (_, some), (_, rows) = ((batch_shape, s.run(xs)) for batch_shape, xs in _batches(s))
    first = _at_batch(some, lambda a, axis: jnp.take(a, 0, axis=axis))
    in_rows = _at_batch(rows, lambda a, axis: jnp.take(a, 0, axis=axis))
    for batch_shape, difference in ((alone, _difference(one, first)), ((2, s.N), _difference(in_rows, some))):
        if difference:
            yield (
                f"batch shapes: a sequence gives something else with the batch shape {batch_shape} than in a batch of "
                f"{s.N} ({difference}); nothing may be mixed over the batch axes, and features are counted from the "
                f"end: axis=-1"
            )


def _at_batch(outputs: tuple[PyTree, PyTree], take: Callable[[jax.Array, int], jax.Array]) -> tuple[PyTree, PyTree]:
    """The part of a run's outputs at a place of the first batch axis: axis 0 of the carry, 1 of ys."""
    carry, ys = outputs
    return jax.tree.map(lambda a: take(a, 0), carry), jax.tree.map(lambda a: take(a, 1), ys)


def _chunks(s: _Subject) -> Iterator[str]:
    cut = s.T // 2
    if s.cell.noise is not None:
        difference = _difference(
            s.draw(range(cut, s.T)),
            jax.tree.map(lambda a: a[cut:] if a.shape[0] == s.T else a, s.draw(range(s.T))),
            exact=True,
        )
        if difference:
            yield (
                f"chunks: the noise of the steps from {cut} on is another when it is drawn for them alone, with "
                f"times={list(range(cut, s.T))} ({difference}), so chunks would not equal the whole run; draw it by "
                f"absolute time: jr.draw_each_step(draw, key, times)"
            )
            return
    for noisy in (False, True)[: 1 + (s.cell.noise is not None)]:
        key = s.key if noisy else None
        head, tail = (jax.tree.map(lambda a, part=part: a[part], s.xs) for part in (slice(cut), slice(cut, None)))
        carry, ys = s.run(head, key=key)
        carry, more = s.run(tail, carry, key=key, start=cut)
        joined = carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, more)
        difference = _difference(joined, s.run(s.xs, key=key))
        if difference:
            yield (
                f"chunks: a run cut at step {cut}{' with noise' if noisy else ''} gives something else than the whole "
                f"({difference}); all that a step needs of the past must be in the carry"
            )


def _padding(s: _Subject) -> Iterator[str]:
    """NaN in a masked step of each of two sequences: its last, the other's first."""
    mask = np.ones((s.T, s.N), bool)
    mask[-1, 0] = mask[0, -1] = False

    def poisoned(a):
        poison = jnp.nan if jnp.issubdtype(a.dtype, jnp.inexact) else 0
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 2)), a, jnp.asarray(poison, a.dtype))

    @jax.jit
    def run(xs, mask):
        """The gradient of the sum of all outputs, by every float of params and inputs."""
        leaves, treedef = flatten((s.params, xs))
        floats = [n for n, a in enumerate(leaves) if hasattr(a, "dtype") and is_float(a)]

        def loss(values):
            own = dict(zip(floats, values, strict=True))
            params, xs = treedef.unflatten([own.get(n, a) for n, a in enumerate(leaves)])
            outputs = scan(s.cell, plan="plain").apply(params, xs, mask=mask)
            return sum(a.astype(jnp.float32).sum() for a in jax.tree.leaves(outputs) if is_float(a)) + 0.0

        return jax.grad(loss)([leaves[n] for n in floats])

    if _finite(run(s.xs, np.ones_like(mask))) and not _finite(run(jax.tree.map(poisoned, s.xs), mask)):
        yield (
            "padding: gradients are not finite where steps are masked: step is given x = 0 there, and its derivative "
            "at 0 is not finite (a norm, a square root, a quotient); guard it, as jnp.sqrt(x**2 + 1e-6) does"
        )


def _gates(s: _Subject) -> Iterator[str]:
    if s.cell.gates is None:
        return
    carry, x = s.run(s.xs)[0], s.at(0)
    if not hasattr(s.cell.gates(s.params, carry, x), "_fields"):
        yield "gates: they must be a NamedTuple of arrays, by whose names others find them; return one"
        return
    gates, (new, _) = s.cell.gates(s.params, carry, x), s.cell.step(s.params, carry, x)
    fields = getattr(new, "_fields", ("h",))
    for name in fields:
        if hasattr(gates, name):
            difference = _difference(getattr(gates, name), getattr(new, name) if hasattr(new, "_fields") else new)
            if difference:
                yield f"gates: their {name} is not the {name} that step carries on ({difference}); compute both at once"


# Where one of a group is broken, those of the next would fail with it.
_RULES = ((_params_of_init, _kept), (_purity, _leaks), (_loop, _batch_shapes, _chunks, _padding, _gates))


# ---- comparisons -----------------------------------------------------------------------------------


def _difference(got: PyTree, want: PyTree, *, exact: bool = False) -> str:
    """Where two trees differ, and by how much; nothing where they agree to half the digits of their dtype."""
    if flatten(got)[1] != flatten(want)[1]:
        return f"{flatten(got)[1]} and {flatten(want)[1]}"
    leaves = jax.tree_util.tree_leaves_with_path(got)
    inexact = [jnp.result_type(a) for _, a in leaves if jnp.issubdtype(jnp.result_type(a), jnp.inexact)]
    near = 0.0 if exact or not inexact else math.sqrt(max(float(jnp.finfo(dtype).eps) for dtype in inexact))
    for (path, a), b in zip(leaves, jax.tree.leaves(want), strict=True):
        a, b = _numbers(a), _numbers(b)
        where = jax.tree_util.keystr(path) or "the value"
        if a.shape != b.shape:
            return f"{where} has the shapes {a.shape} and {b.shape}"
        if not np.allclose(a, b, rtol=near, atol=near, equal_nan=True):
            return f"{where} differs by {np.max(np.abs(a - b)):.3g}"
    return ""


def _numbers(leaf: Any) -> np.ndarray:
    """A leaf as NumPy's floats or complex numbers of 64 bits each; keys as their bits."""
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    is_complex = jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)
    return np.asarray(leaf).astype(np.complex128 if is_complex else np.float64)


def _finite(leaves: list[jax.Array]) -> bool:
    return all(bool(jnp.isfinite(a).all()) for a in leaves)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['without a message'])[0]}"
