"""A cell stepped for a batch whose members come and go: ``jr.stream``, and ``jr.Slots``, which assigns its slots."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import Cell, PyTree, expect_cell, flatten, name_of
from jaxrnn._checks import check_batch_shape, check_features, check_flags, check_sizes, step_batch_shape
from jaxrnn._narrowing import check_held
from jaxrnn.planning.one_kernel import run_step
from jaxrnn.running.scan import scan


class Stream(NamedTuple):
    """What ``jr.stream`` makes; both functions are pure."""

    initial_carry: Callable[..., PyTree]  # (params, batch_shape=()) -> carry
    step: Callable[..., tuple[PyTree, PyTree]]  # (params, carry, x, *, mask=None, resets=None) -> (carry, y)


def stream(cell: Cell) -> Stream:
    """One step at a time of a batch whose members join, pause and leave, all of it one compiled program.

        carry_{t-1} = initial_carry(params)            where resets_t
        carry_t, y_t = step(params, carry_{t-1}, x_t)  where mask_t
        carry_t, y_t = carry_{t-1}, 0                  elsewhere

    It is one step of ``jr.scan(cell).apply``: calls for t = 0 … T-1 give what the run over xs does with the same
    ``mask`` and ``resets``. Nothing random happens: dropout is off, zoneout its mean.

    Args:
        cell: a Cell; ``jr.chain`` makes one of several.

    Returns:
        ``Stream(initial_carry, step)``. ``initial_carry(params, batch_shape=())`` is a copy of the cell's own, which
        may be the learned state in ``params`` itself: donating that would delete it.
        ``step(params, carry, x, *, mask=None, resets=None)`` takes

        x: (*B, I), or a pytree of arrays that all lead with *B.
        mask: (*B) booleans, True for members that have an input at this step. The others keep their carry bit by bit
            and output 0; what stands in ``x`` there does not matter, NaN included.
        resets: (*B) booleans, True for members that begin anew: they get the cell's initial carry before ``x`` is read,
            whether ``mask`` is True or not.

        and returns ``(carry, y)``, y (*B, O). It does not jit: wrap it in ``jax.jit``, and donate the old carry
        (``donate_argnums=1``), so that the new one takes its memory. Give both flags always or never: a call without
        them is another program. On a single CPU device at B = 1 the step is one kernel (docs/plans.md), and
        ``jax.config.update("jax_cpu_enable_async_dispatch", False)`` spares the hand-over to another thread.

    Raises:
        TypeError: a Layer, which needs the whole sequence. ValueError, TypeError: while tracing, for anything that
            does not fit, with the fix.

    Example, a server of three sessions at most, two of which have sent something:
        >>> import jax, numpy as np, jaxrnn as jr
        >>> cell = jr.chain(jr.lstm(2, 4), jr.readout(4, 1))
        >>> params, served, slots = cell.init(jax.random.key(0)), jr.stream(cell), jr.Slots(3)
        >>> step = jax.jit(served.step, donate_argnums=1)
        >>> carry = served.initial_carry(params, (3,))
        >>> slots.join("ann"), slots.join("bob"), slots.join("eve")
        (0, 1, 2)
        >>> sent, x = {"ann": [1.0, 0.0], "eve": [0.5, 2.0]}, np.zeros((3, 2), np.float32)
        >>> for session, features in sent.items():
        ...     x[slots[session]] = features
        >>> mask, resets = slots.flags(sent)
        >>> carry, y = step(params, carry, x, mask=mask, resets=resets)
        >>> {session: y[slots[session]].shape for session in sent}, float(y[slots["bob"]][0])
        ({'ann': (1,), 'eve': (1,)}, 0.0)
    """
    expect_cell(
        "stream",
        cell,
        if_layer="a Layer needs the whole sequence; put the Cells it is made of together with jr.chain, which takes "
        "the params of jr.stack as they are (a run in reverse or in both directions reads the future, and cannot be "
        "stepped)",
    )
    who = f"stream({name_of(cell)})"
    # Under "plain" one step, unrolled, is a program without a loop; what a plan prepares pays for long runs alone.
    layer = scan(cell, plan="plain", unroll=2)

    def initial_carry(params, batch_shape=()):
        check_batch_shape(who, batch_shape)
        return jax.tree.map(jnp.copy, cell.initial_carry(params, tuple(batch_shape)))

    def step(params, carry, x, *, mask=None, resets=None):
        if cell.input_size is not None and cell.x_ndim == 1:
            check_features(who, x, cell.input_size)
        check_held(who, "x", x)
        check_held(who, "carry", carry)
        batch_shape = step_batch_shape(who, x, cell.x_ndim)
        flags = {"mask": mask, "resets": resets}
        for name, meaning in (("mask", "have an input"), ("resets", "begin anew")):
            if flags[name] is not None:
                expected = f"True for members that {meaning}"
                check_flags(who, name, flags[name], (batch_shape,), expected, axes="*B, the batch axes of x")
        weights, params_tree = flatten(params)
        arrays, tree = flatten((carry, x, flags))
        made: list[Any] = []

        def run(weights, arrays):
            carry, x, flags = tree.unflatten(arrays)
            params = params_tree.unflatten(weights)
            carry, ys = layer.apply(params, _one_step_long(x), carry, **_one_step_long(flags))
            leaves, out = flatten((carry, jax.tree.map(lambda a: a[0], ys)))
            made.append(out)
            return leaves

        leaves = run_step(run, weights, arrays)
        return made[-1].unflatten(leaves)

    return Stream(initial_carry, step)


class Slots:
    """Which session has which slot of a batch, kept on the host; :func:`stream` has an example of use.

    A session takes the free slot of the lowest number and keeps it until it leaves. ``resets`` are True for every slot
    until its session's first input, so no session sees the state of the one before.

    Args:
        capacity: B, the number of slots.

    Methods:
        join(session) -> slot: of a name of yours, anything hashable. ValueError: it is in already, or all are taken.
        leave(session): its slot is free for another. KeyError: unknown.
        slots[session] -> slot. KeyError: unknown.
        flags(sessions) -> (mask, resets): (B,) booleans for the next step, in which these sessions have an input. To
            be called once for each step.

    Example:
        >>> import jaxrnn as jr
        >>> slots = jr.Slots(2)
        >>> slots.join("ann"), slots.join("bob")
        (0, 1)
        >>> [flags.tolist() for flags in slots.flags(["ann"])], [flags.tolist() for flags in slots.flags(["bob"])]
        ([[True, False], [True, True]], [[False, True], [False, True]])
        >>> slots.leave("ann")
        >>> slots.join("eve"), slots.flags(["bob", "eve"])[1].tolist()
        (0, [True, False])
    """

    def __init__(self, capacity: int) -> None:
        check_sizes("Slots", capacity=capacity)
        self._slot_of: dict[Hashable, int] = {}
        self._free = set(range(capacity))
        self._started = np.zeros(capacity, bool)  # whether the session has had an input

    def join(self, session: Hashable) -> int:
        if session in self._slot_of:
            raise ValueError(f"Slots: {session!r} is in slot {self[session]} already; leave({session!r}) first.")
        if not self._free:
            raise ValueError(
                f"Slots: no room for {session!r}, all {len(self._started)} slots are taken; let a session leave first, "
                f"or start with a larger capacity."
            )
        self._slot_of[session] = slot = min(self._free)
        self._free.remove(slot)
        return slot

    def leave(self, session: Hashable) -> None:
        slot = self[session]
        del self._slot_of[session]
        self._free.add(slot)
        self._started[slot] = False

    def __getitem__(self, session: Hashable) -> int:
        if session not in self._slot_of:
            raise KeyError(
                f"Slots: there is no session {session!r} among these {len(self._slot_of)}; it has to join first."
            )
        return self._slot_of[session]

    def flags(self, sessions: Iterable[Hashable]) -> tuple[np.ndarray, np.ndarray]:
        mask, resets = np.zeros_like(self._started), ~self._started
        mask[[self[session] for session in sessions]] = True
        self._started |= mask
        return mask, resets


def _one_step_long(tree: PyTree) -> PyTree:
    """Arrays (*B, …) as a sequence of one step, (1, *B, …)."""
    return jax.tree.map(lambda a: jnp.asarray(a)[None], tree)
