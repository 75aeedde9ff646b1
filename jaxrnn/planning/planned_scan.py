"""``planned_scan``: ``lax.scan`` under a plan. The step is traced, the passes rewrite it, and two scans run what they
made: one for the values, one, linear, for the tangents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxrnn._base import PyTree, flatten
from jaxrnn.loops.chunked import Chunking, Way, scan_in_chunks
from jaxrnn.planning.contract import contract
from jaxrnn.planning.cut_weights import by_pieces, cut_weights
from jaxrnn.planning.explanation import ScanExplanation
from jaxrnn.planning.fuse import fuse
from jaxrnn.planning.hoist import hoist, in_blocks
from jaxrnn.planning.join_contractions import join_contractions
from jaxrnn.planning.join_gates import join_gates
from jaxrnn.planning.join_pieces import join_pieces
from jaxrnn.planning.join_products import join_products
from jaxrnn.planning.linearize import is_inexact, linearize
from jaxrnn.planning.one_device import devices, for_one_device, may_be_on_one_cpu
from jaxrnn.planning.one_kernel import one_kernel, plan_for_chunks, plan_for_few_rows
from jaxrnn.planning.persistent_kernel import persistent_kernel, plan_for_kernels
from jaxrnn.planning.plan import Plan
from jaxrnn.planning.planned_step import Active, PlannedStep, narrow_values
from jaxrnn.planning.save import save
from jaxrnn.planning.scan_program import scan_program
from jaxrnn.planning.split_sums import split_sums
from jaxrnn.planning.spread import spread
from jaxrnn.planning.sum_by_product import sum_by_product
from jaxrnn.planning.transpose_weights import transpose_weights
from jaxrnn.planning.weights_on_the_left import weights_on_the_left
from jaxrnn.programs.program import Program, reached_from
from jaxrnn.programs.tracing import trace

PASSES: dict[str, Callable[[PlannedStep], PlannedStep]] = {
    pass_.__name__: pass_
    for pass_ in (
        fuse,
        join_gates,
        linearize,
        save,
        spread,  # this one and the next three: of the tangent alone
        split_sums,
        join_pieces,
        transpose_weights,
        hoist,
        weights_on_the_left,
        join_products,
        cut_weights,
        sum_by_product,
        join_contractions,
        contract,
        one_kernel,
        persistent_kernel,
    )
}  # in the order in which they run


def planned_scan(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    xs: PyTree,
    *,
    reverse: bool,
    unroll: int,
    plan: Plan,
    explanation: ScanExplanation,
    count: jax.Array | None = None,
    chunking: Chunking | None = None,
) -> tuple[PyTree, PyTree]:
    """``jax.lax.scan(body, carry, xs)`` under a plan; what was done is written into the explanation.

    With a count, () int32, so many steps are run, forward, and what is stacked beyond them is 0. With a chunking, the
    steps are run in chunks side by side.
    """
    carry, plan = jax.tree.map(_strong, carry), plan_for_kernels(plan)
    carry_leaves, carry_tree = flatten(carry)
    xs_leaves, xs_tree = flatten(xs)
    n_carry, y_trees = len(carry_leaves), []

    def step(*leaves):
        new, y = body(carry_tree.unflatten(leaves[:n_carry]), xs_tree.unflatten(leaves[n_carry:]))
        y_leaves, y_tree = flatten(y)
        y_trees.append(y_tree)
        return [*jax.tree.leaves(new), *y_leaves]

    T = xs_leaves[0].shape[0]
    program, reason = trace(step, *carry_leaves, *map(_one_step, xs_leaves)) if T else (None, None)
    if n_carry == 0 and (T == 0 or (program is not None and _may_run_at_once(program))):
        return carry, jax.vmap(lambda x: body(carry, x)[1])(xs)
    if program is None:
        explanation.plain_because = reason
        assert count is None, f"{reason} in a run that a plan alone can make"
        if chunking is None:
            return jax.lax.scan(body, carry, xs, reverse=reverse, unroll=unroll)
        return scan_in_chunks(body, carry, xs, reverse=reverse, chunking=chunking)
    explanation.programs["trace"] = PlannedStep.of(program, n_carry, plan)
    steps = T if isinstance(T, int) else None
    way = None if chunking is None else chunking.way
    run = _differentiable(program, n_carry, plan, explanation, steps, way, reverse=reverse, unroll=unroll)
    given = Given(count) if chunking is None else Given(None, chunking.guess, chunking.held)
    outputs = run([*program.consts.values()], carry_leaves, xs_leaves, given)
    return carry_tree.unflatten(outputs[:n_carry]), y_trees[0].unflatten(outputs[n_carry:])


class Given(NamedTuple):
    """What a run is given beside what its step reads; nothing of it has a tangent."""

    count: Any = None  # () int32: how many steps are run; None: all
    guess: Any = None  # a carry from which chunks may start
    held: Any = None  # (T, *rows): where a step changes nothing

    def of(self, way: Way | None) -> dict[str, Any]:
        """As options of ``scan_program``."""
        return {"count": self.count, "chunking": None if way is None else Chunking(way, self.guess, self.held)}


def _may_run_at_once(program: Program) -> bool:
    """Whether all steps of a body that carries nothing may be one, without a loop.

    Not where that would fill memory with what is large within a step alone, and not where constants are narrower than
    float32, whose gradients would be summed over all steps in their own dtype.
    """
    enter_and_leave = sum(map(program.size, [*program.inputs, *program.outputs]))
    made = reached_from(program.ops, program.inputs)
    swells = max(map(program.size, made), default=0) > 4 * enter_and_leave
    return not swells and not narrow_values(program, tuple(program.consts))


def _differentiable(
    as_traced: Program,
    n_carry: int,
    plan: Plan,
    explanation: ScanExplanation,
    steps: int | None,
    way: Way | None,
    **options: Any,
) -> Callable[..., list[Any]]:
    """``run(consts, carry, xs)``, whose derivative is the scan of the tangent that the passes made."""
    program = by_pieces(as_traced)
    traced = PlannedStep.of(as_traced, n_carry, plan)
    as_it_stands = traced._replace(primal=traced.primal._replace(as_it_stands=True))  # the program of "plain"

    def rewritten(plan: Plan, active: Active | None, has_kernel: bool) -> tuple[PlannedStep, dict[str, PlannedStep]]:
        """The step after all passes, and after each of them."""
        step, after = PlannedStep.of(program, n_carry, plan, active, steps=steps, has_kernel=has_kernel), {}
        for name, rewrite in PASSES.items():
            step = rewrite(step)
            after[name] = step.without_values()
        return step, after

    def planned(active: Active | None) -> tuple[PlannedStep, PlannedStep | None]:
        """The step, and what runs in its place elsewhere than on one CPU device. Both save the same."""
        if way is not None:
            of_chunks = plan_for_chunks(program, plan)
            step, after = rewritten(of_chunks, active, bool(of_chunks.one_kernel))
            explanation.programs |= after
            explanation.note({**step.notes, "one_kernel": ()})
            return step, None
        of_few_rows = plan_for_few_rows(program, plan)
        has_kernel = of_few_rows is not None and bool(of_few_rows.one_kernel)
        step, after = alone, after_alone = rewritten(plan, active, has_kernel)
        if of_few_rows or (devices() > 1 and may_be_on_one_cpu(program, plan)):
            with for_one_device():
                alone, after_alone = rewritten(of_few_rows or plan, active, has_kernel)
            alone = in_blocks(alone) if of_few_rows else alone
        several = explanation.on_several_devices
        explanation.programs |= after if several else after_alone
        explanation.note((step if several else alone).notes)
        if active is None:
            alone, step = (form if any(form.notes.values()) else as_it_stands for form in (alone, step))
        alike = alone is step or (not of_few_rows and (alone.notes, str(alone)) == (step.notes, str(step)))
        return (step, None) if alike else (alone, step)

    @jax.custom_jvp
    def run(consts, carry, xs, given):
        step, otherwise = planned(None)
        return scan_program(
            step.primal, consts, carry, xs, otherwise=otherwise and otherwise.primal, **given.of(way), **options
        )

    def rule(primals, tangents):
        consts, carry, xs, given = primals
        d_consts, d_carry, d_xs, _ = tangents
        active = Active(
            consts=[i for i, d in enumerate(d_consts) if _has_tangent(d)],
            carry=[i for i, a in enumerate(carry) if is_inexact(a)],
            x=[i for i, d in enumerate(d_xs) if _has_tangent(d)],
        )
        d_carry = [d_carry[i] if _has_tangent(d_carry[i]) else jnp.zeros_like(carry[i]) for i in active.carry]
        step, otherwise = planned(active)
        assert step.tangent is not None
        outputs = scan_program(
            step.primal, consts, carry, xs, otherwise=otherwise and otherwise.primal, **given.of(way), **options
        )
        n_outputs = len(outputs) - len(step.saved)
        outputs, saved = outputs[:n_outputs], outputs[n_outputs:]

        d_outputs = scan_program(
            step.tangent,
            [*consts, *(d_consts[i] for i in active.consts)],
            d_carry,
            [*(d_xs[i] for i in active.x), *xs, *saved],
            recompute=plan.recompute,
            otherwise=otherwise and otherwise.tangent,
            **given._replace(guess=None).of(way),
            **options,
        )
        of_floats = iter(d_outputs)
        return outputs, [next(of_floats) if is_inexact(a) else _no_tangent(a) for a in outputs]

    run.defjvp(rule, symbolic_zeros=True)
    return run


def _one_step(a: Any) -> Any:
    return jax.eval_shape(lambda a: a[0], a)


def _strong(a: Any) -> Any:
    """An array without a weak type, as a scan's carry must be."""
    return jnp.asarray(a, dtype=jnp.result_type(a)) if is_inexact(jnp.asarray(a)) else jnp.asarray(a)


def _has_tangent(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero) and tangent.dtype != jax.dtypes.float0


def _no_tangent(a: Any) -> Any:
    return SymbolicZero(jax.typeof(a).to_tangent_aval())
