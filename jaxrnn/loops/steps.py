"""A scan that may be run in other ways than step by step: what is run, in which way, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import flatten
from jaxrnn.devices.placement import vary_alike
from jaxrnn.programs.calls import as_one_kernel

Arrays = list[Any]


class Way(NamedTuple):
    """How a scan is run in chunks."""

    chunks: int
    sweeps: int  # after so many the rest is run step by step
    tol: float | None = None  # relative to the carry; None: by its dtype
    row_axes: int = 0  # the leading axes of a carry's leaves whose rows are apart
    method: str = "chunks"  # "associative": the carry after a step is a * carry + b, leaf by leaf; "newton"
    who: str = "parallel"  # for reports

    def kind_of_report(self) -> Any:
        return jax.core.ShapedArray((3 + self.sweeps,), jnp.dtype(jnp.float32))


class Steps(NamedTuple):
    """What is run: a step, and all that it reads."""

    function: Callable[..., Sequence[Any]]  # (consts…, carry…, x…) -> carry…, what is added up over all steps…, y…
    consts: Arrays
    n_carry: int
    n_added: int
    kinds: Sequence[Any]  # of what the step gives
    xs: Arrays  # (T, …) each
    length: int
    reverse: bool
    one_kernel: bool = False  # run one by one, they can be one kernel of a CPU
    pieces: int = 0  # of time, as several devices may share them; 0: each device has all that it is given

    def step(self, *values: Any) -> Sequence[Any]:
        return self.function(*self.consts, *values)

    def nothing_yet(self) -> tuple[Arrays, Arrays]:
        """What is added up and what is stacked, before the first step."""
        kinds, n = self.kinds[self.n_carry :], self.n_added
        sums = [jnp.zeros(kind.shape, kind.dtype) for kind in kinds[:n]]
        ys = [jnp.zeros((self.length, *kind.shape), kind.dtype) for kind in kinds[n:]]
        sums, ys, _ = vary_alike(sums, ys, self.xs)
        return sums, ys

    def split(self, made: Sequence[Any]) -> tuple[Arrays, Arrays, Arrays]:
        end = self.n_carry + self.n_added
        return list(made[: self.n_carry]), list(made[self.n_carry : end]), list(made[end:])


Found = tuple[Arrays, Arrays, Arrays]  # of a run: its end, what was added up, what was put out


class Outcome(NamedTuple):
    """What a run found, and how it went."""

    found: Found
    accepted: Any  # () bool; where it is not, all steps were run one by one
    sweeps: Any  # () int32: or iterations
    warm_up: Any  # () int32: steps
    residuals: Any  # (way.sweeps,) float32; NaN beyond those that were made

    def outputs(self) -> Arrays:
        """All that was found, then a report, as ``Way.kind_of_report`` has it."""
        numbers = [a.astype(jnp.float32) for a in (self.accepted, self.sweeps, self.warm_up)]
        return [*(a for part in self.found for a in part), jnp.concatenate([jnp.stack(numbers), self.residuals])]


def run_all(steps: Steps, start: Arrays) -> Found:
    """All steps, one by one."""
    if steps.pieces:
        return _run_piece_by_piece(steps, start, *steps.nothing_yet(), steps.pieces)

    def run(consts, start, sums, xs):
        def one(state, x):
            carry, sums = state
            carry, more, y = steps.split(steps.function(*consts, *carry, *x))
            return (carry, [a + b for a, b in zip(sums, more, strict=True)]), y

        (end, sums), ys = jax.lax.scan(one, (start, sums), xs, reverse=steps.reverse)
        return [*end, *sums, *ys]

    arrays, tree = flatten((steps.consts, start, steps.nothing_yet()[0], steps.xs))
    flat = lambda *arrays: run(*tree.unflatten(arrays))
    return steps.split(as_one_kernel(flat, *arrays) if steps.one_kernel else flat(*arrays))


def run_rest(steps: Steps, start: Arrays, found: Found, wanted: Any) -> Found:
    """All steps, one by one, written over what was found; none where that is not wanted.

    A loop that takes no turn, and not a conditional, which would copy what was found.
    """

    def one(i, running):
        carry, sums, ys = running
        t = steps.length - 1 - i if steps.reverse else i
        at = lambda a: jax.lax.dynamic_index_in_dim(a, t, keepdims=False)
        carry, more, y = steps.split(steps.step(*carry, *map(at, steps.xs)))
        write = lambda a, y: jax.lax.dynamic_update_index_in_dim(a, y, t, 0)
        return carry, [a + b for a, b in zip(sums, more, strict=True)], list(map(write, ys, y))

    end, sums, ys = found
    begins = [jnp.where(wanted, a, b) for a, b in zip(start, end, strict=True)]
    sums = [jnp.where(wanted, jnp.zeros_like(a), a) for a in sums]
    if steps.pieces:
        return _run_piece_by_piece(steps, begins, sums, ys, jnp.where(wanted, steps.pieces, 0))
    return jax.lax.fori_loop(0, jnp.where(wanted, steps.length, 0), one, (begins, sums, ys))


def _run_piece_by_piece(steps: Steps, start: Arrays, sums: Arrays, ys: Arrays, turns: Any) -> Found:
    """All steps, one by one, in so many turns as there are pieces, or none, written over ys.

    Each piece goes to all devices, and what is made of it stays on the one that has it: none holds more than its own
    part of time and one piece. Indices are arrays, for a slice at a number that is not known would make the compiler
    gather what it is taken from.
    """
    K = steps.pieces
    L = steps.length // K
    cut = lambda a: a.reshape(K, L, *a.shape[1:])
    of_pieces = list(map(cut, steps.xs))
    known = {"indices_are_sorted": True, "unique_indices": True, "mode": "promise_in_bounds"}

    def one(number, running):
        carry, sums, ys = running
        at = jnp.reshape(K - 1 - number if steps.reverse else number, (1,))
        xs = [a.at[at].get(**known)[0] for a in of_pieces]
        carry, more, y = run_all(steps._replace(xs=xs, length=L, pieces=0), carry)
        write = lambda a, y: a.at[at].set(y[None], **known)
        return carry, [a + b for a, b in zip(sums, more, strict=True)], list(map(write, ys, y))

    end, sums, ys = jax.lax.fori_loop(0, turns, one, (start, sums, list(map(cut, ys))))
    return end, sums, [a.reshape(steps.length, *a.shape[2:]) for a in ys]
