"""What stands between a batch and rules that see one sequence; which rule a name means."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree, flatten, is_float
from jaxrnn._checks import check_choice, check_inexact_carry, check_params, check_sizes, step_batch_shape
from jaxrnn._narrowing import check_held
from jaxrnn.online.influence import Influence, influence_of, sparse_rule
from jaxrnn.online.kronecker import kf_rtrl
from jaxrnn.online.local import local_rule
from jaxrnn.online.parts import output_of
from jaxrnn.online.problem import Output, Problem, carry_of, params_of, shapes
from jaxrnn.online.rules import OnlineRule, Start
from jaxrnn.online.spatial import check_feedback, spatial_output
from jaxrnn.online.uoro import uoro
from jaxrnn.online.window import tbptt
from jaxrnn.running.scan import shapes_of_params

LOCAL = ("layerwise", "eprop", "rflo")
NAMES = ("rtrl", "snap1", "snap2", "snap:3", *LOCAL, "uoro", "kf_rtrl", "kf_rtrl:2", "tbptt")
SALT = 0x6F6E  # what a rule draws is not what the cell draws


class Batch:
    """A batch of sequences of a cell, as a problem of one sequence and what takes functions of that over the batch."""

    def __init__(self, who: str, cell: Cell, params: PyTree, batch_shape: tuple[int, ...], x: PyTree, key: Any):
        self.batch_shape, self.cell, self.x = batch_shape, cell, x
        carry = jax.eval_shape(lambda: cell.initial_carry(params, ()))
        if jax.tree.leaves(carry):
            check_inexact_carry(who, carry)
        parts = params_of(params)
        theta, others = jax.eval_shape(lambda: parts.split(params))
        n = len(batch_shape)
        row = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[n:], a.dtype), x)
        noise, self.own = self._noise(who, params, key)
        self.problem = Problem(who, cell, parts, carry_of(carry), theta, others, row, noise)

    def _noise(self, who: str, params: PyTree, key: Any) -> tuple[PyTree, list[bool]]:
        """The types of the noise of one sequence, and of each leaf whether it leads with the batch."""
        if self.cell.noise is None or key is None:
            return None, []
        times = jax.ShapeDtypeStruct((1,), jnp.int32)

        noise = self.cell.noise

        def drawn(x):
            return flatten(jax.eval_shape(lambda key, times: noise(params, key, times, x), key, times))

        def wider(axis):
            def more(a):
                shape = tuple(size + (i == axis) for i, size in enumerate(a.shape))
                return jax.ShapeDtypeStruct(shape, a.dtype)

            return [leaf.shape for leaf in drawn(jax.tree.map(more, self.x))[0]]

        leaves, treedef = drawn(self.x)
        n, kinds, own = len(self.batch_shape), [], []
        others = [wider(axis) for axis in range(n)]
        for index, leaf in enumerate(leaves):
            grown = [
                tuple(i for i, (a, b) in enumerate(zip(leaf.shape, shapes[index], strict=True)) if a != b)
                for shapes in others
            ]
            if grown != [(axis + 1,) for axis in range(n)] and any(grown):
                raise ValueError(
                    f"{who}: of the cell's noise a leaf of shape {leaf.shape} neither leads with (1, *B), *B here "
                    f"{self.batch_shape}, nor is one for all sequences; draw it so in the cell's noise function."
                )
            own.append(n > 0 and bool(any(grown)))
            kinds.append(jax.ShapeDtypeStruct(leaf.shape[1 + n * own[-1] :], leaf.dtype))
        return treedef.unflatten(kinds), own

    def draw(self, params: PyTree, key: Any, time: Any) -> PyTree:
        """The noise of one step."""
        if self.problem.noise is None:
            return None
        noise = self.cell.noise(params, key, jnp.asarray(time, jnp.int32)[None], self.x)  # type: ignore[misc]
        return jax.tree.map(lambda a: a[0], noise)

    def over(self, function: Callable[..., Any], *noise: Any) -> Callable[..., Any]:
        """A function of one sequence as one of the batch; ``noise``, where it is given, is its last argument."""

        def batched(*arguments: Any) -> Any:
            if not noise or noise[0] is None:
                given, run = arguments, lambda *a: function(*a, *noise)
                axes: Any = 0
            else:
                leaves, treedef = flatten(noise[0])
                given = (*arguments, leaves)
                run = lambda *a: function(*a[:-1], treedef.unflatten(a[-1]))
                axes = (*[0] * len(arguments), [0 if own else None for own in self.own])
            for _ in self.batch_shape:
                run = jax.vmap(run, in_axes=axes)
            return run(*given)

        return batched


class Chosen:
    """A rule by its name, or a user's own."""

    def __init__(self, who: str, cell: Cell, rule: Any, window: int | None, masks: PyTree, feedback: Any):
        self.who, self.masks = who, masks
        self.known: dict[Any, Influence] = {}
        self.name = rule if isinstance(rule, str) else "a rule of your own"
        self.rule = rule if isinstance(rule, OnlineRule) else self._named(rule, window)
        self.feedback = check_feedback(who, rule, feedback)
        if window is not None and rule != "tbptt":
            raise ValueError(f"{who}: window={window} is for rule='tbptt' alone, got rule={rule!r}; leave it out.")
        if masks is not None:
            if any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(masks)):
                raise TypeError(
                    f"{who}: masks must be params whose values are known, got traced ones; the pattern is found from "
                    f"them, so call jr.online outside of the function that is traced."
                )
            check_held(who, "masks", masks)
            check_params(who, masks, shapes_of_params(cell), "masks")

    def _named(self, rule: Any, window: int | None) -> OnlineRule:
        if isinstance(rule, str) and (found := re.fullmatch(r"snap:?([1-9]\d*)", rule)):
            return sparse_rule(int(found[1]), self.influence)
        if isinstance(rule, str) and (found := re.fullmatch(r"kf_rtrl(?::([1-9]\d*))?", rule)):
            return kf_rtrl(int(found[1]) if found[1] else None)
        check_choice(self.who, "rule", rule, NAMES)
        if rule in LOCAL:
            return local_rule(rule, self.influence)
        if rule == "rtrl":
            return sparse_rule(None, self.influence)
        if rule == "uoro":
            return uoro()
        if window is None:
            raise ValueError(f"{self.who}: rule='tbptt' goes back a window of steps; give window=…, such as window=20.")
        check_sizes(self.who, window=window)
        return tbptt(window)

    def influence(self, problem: Problem) -> Influence:
        """The pattern, found once for each set of shapes."""
        leaves, tree = flatten((problem.theta, problem.carry.kinds, problem.others, problem.x, problem.noise))
        key = tree, tuple((a.shape, str(a.dtype)) for a in leaves)
        if key not in self.known:
            steps = int(self.name[4:].removeprefix(":")) if self.name.startswith("snap") else None
            self.known[key] = influence_of(problem, steps, self.masks)
        return self.known[key]

    def output(self, problem: Problem, key: Any) -> Output:
        """What a step puts out, with the derivative by the new carry that the rule's errors go back by."""
        if self.name not in LOCAL:
            return output_of(problem)
        for number in (SALT, 2):
            key = None if key is None else jax.random.fold_in(key, number)
        return spatial_output(problem, self.feedback, key)

    @property
    def keeps_influence(self) -> bool:
        """Whether the trace is the influence itself, as far as a pattern holds it."""
        return self.name == "rtrl" or self.name.startswith("snap")

    def start(self, batch: Batch, params: PyTree, key: Any, time: Any, *, fresh: bool) -> PyTree:
        """The trace where sequences start."""
        if self.feedback is not None:
            self.output(batch.problem, key)  # raises where it does not fit
        theta, others = batch.problem.params.split(params)
        if self.rule.needs_key and key is None:
            raise ValueError(
                f"{self.who}: rule {self.name!r} draws at random and has no key; give init one, key=jax.random.key(0)."
            )
        keys = self.keys(key, time, 1, batch.batch_shape)

        def of_row(key):
            return self.rule.init(Start(batch.problem, theta, others, key, fresh))

        if keys is None:
            trace = of_row(None)
            spread = lambda a: jnp.broadcast_to(a, (*batch.batch_shape, *jnp.shape(a)))
            return jax.tree.map(spread, trace)
        return batch.over(of_row)(keys)

    def keys(self, key: Any, time: Any, use: int, batch_shape: tuple[int, ...]) -> Any:
        """A key for each sequence at this time; None where the rule draws nothing."""
        if not self.rule.needs_key or key is None:
            return None
        for number in (SALT, use, time):
            key = jax.random.fold_in(key, number)
        return jax.random.split(key, batch_shape)


def example(who: str, cell: Cell, params: PyTree, batch_shape: tuple[int, ...], x: PyTree) -> PyTree:
    """The type of an input of the batch: that of the one given, else by the cell's ``input_size``."""
    if x is not None:
        check_held(who, "x", x)
        if step_batch_shape(who, x, cell.x_ndim) != batch_shape:
            raise ValueError(
                f"{who}: x has the batch axes {step_batch_shape(who, x, cell.x_ndim)}, and batch_shape is "
                f"{batch_shape}; give an input of one step of the whole batch, or its jax.ShapeDtypeStruct."
            )
        return shapes(x)
    if cell.x_ndim == 0:
        return jax.ShapeDtypeStruct(batch_shape, jnp.int32)
    if cell.x_ndim != 1 or cell.input_size is None:
        raise ValueError(
            f"{who}: what this cell reads cannot be told from its input_size, so give init an input of one step, "
            f"init(params, batch_shape, x=…), or its jax.ShapeDtypeStruct."
        )
    floats = [a.dtype for a in map(jax.typeof, jax.tree.leaves(params)) if is_float(a)]
    return jax.ShapeDtypeStruct((*batch_shape, cell.input_size), floats[0] if floats else jnp.float32)
