"""The gradient of one step's loss by the new carry: back through the members of a chain, or by a feedback matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._checks import check_choice
from jaxrnn.online.parts import Member, TracedStep, members_of, traced_step
from jaxrnn.online.problem import Output, Problem, held
from jaxrnn.programs.program import Op, evaluate, needed_for, reached_from

FEEDBACK = ("symmetric", "random")


@jax.custom_jvp
def graft(value: Any, moving: Any) -> Any:
    """``value``, which moves with what it is made of and with something else too."""
    return value


@graft.defjvp
def _graft_jvp(primals: Any, tangents: Any) -> Any:
    return primals[0], tangents[0] + tangents[1]


def spatial_output(problem: Problem, feedback: Any, key: Any) -> Output:
    """y_t = o(θ, h_{t-1}, h_t, x_t), where what a later member carries depends on the new carry of earlier ones.

        u^m = ∂L_t/∂h^m_t = direct + Σ u^n ∂h^n_t/∂h^m_t        n: the members behind m, what they carried held

    So do the errors of params of members that carry nothing, and of those by which a member only puts out.

    Args:
        feedback: None, or what stands in place of the transpose of the last product with weights: "random" or (O, H).
        key: of the random one.
    """
    step = traced_step(problem)
    members = members_of(problem, step)
    linked: list[Linked] = []
    before: set[int] = set()
    for member in members:
        own = needed_for(step.ops, member.new, given=before)
        others = {*step.theta, *step.old, *before} - {*member.theta, *member.old}
        if reached_from(own, others) & set(member.new):
            linked.append(Linked(member, before, own))
        before = before.union(member.new)
    new = set(step.new)
    ops = needed_for(step.ops, step.ys, given=new)
    old = [k for k in step.old if k not in new]
    reads_old = bool(reached_from(ops, old) & set(step.ys) - new) or any(
        reached_from(m.ops, set(old) - set(m.member.old)) & set(m.member.new) - m.ahead for m in linked
    )
    replaced = None if feedback is None else _fed_back(problem, step, ops, feedback, key)

    def compute(theta, h, h_new, others, x, noise):
        given = step.values(theta, problem.carry.tree(h), others, x, noise)
        at = dict(zip(step.new, jax.tree.leaves(problem.carry.tree(h_new)), strict=True))
        for member, ahead, own in linked:  # in their order: each is linked to those that are linked already
            stopped = {k: held(given[k], h_new) for k in (*member.theta, *member.old)}
            made = evaluate(own, {**given, **stopped, **{k: at[k] for k in ahead}}, member.new)
            at.update({k: graft(at[k], a) for k, a in zip(member.new, made, strict=True) if k not in ahead})
        run = ops if replaced is None else [replaced.op if op is replaced.instead_of else op for op in ops]
        return step.output.unflatten(evaluate(run, {**given, **at}, step.ys))

    return Output(reads_old, compute)


class Linked(NamedTuple):
    """A member whose new carry depends on more than its own."""

    member: Member
    ahead: set[int]  # the new carry of members before it
    ops: list[Op]


class Replaced(NamedTuple):
    """A product whose derivative by its vector is another."""

    instead_of: Op
    op: Op


def _fed_back(problem: Problem, step: TracedStep, ops: list[Op], feedback: Any, key: Any) -> Replaced:
    """The readout, with the matrix in place of its transpose."""
    product, place = _readout(problem, step, ops)
    H, O = (step.program.kinds[k].shape[0] for k in (product.inputs[place], product.outputs[0]))
    B = feedback_matrix(problem.who, feedback, key, O, H)

    def run(*operands):
        vector = operands[place]
        (made,) = product.run(*(held(a, a) if i == place else a for i, a in enumerate(operands)))
        return [graft(made, jnp.dot(vector, B.T.astype(vector.dtype)).astype(made.dtype))]

    return Replaced(product, product._replace(run=run))


def _readout(problem: Problem, step: TracedStep, ops: list[Op]) -> tuple[Op, int]:
    """The last product of a vector and weights through which all goes from the carry to y; the vector's place."""
    weights, sources = step.weights(), [*step.new, *step.old]
    carried = reached_from(ops, sources)
    for op in reversed([op for op in ops if op.name == "dot_general"]):
        mine = [i for i in (0, 1) if op.inputs[i] in carried and op.inputs[1 - i] in weights]
        if len(mine) != 1:
            continue
        around = reached_from(needed_for(ops, step.ys, given=set(op.outputs)), sources)
        shapes = [step.program.kinds[op.inputs[i]].shape for i in (mine[0], 1 - mine[0])]
        if not around & set(step.ys) and list(map(len, shapes)) == [1, 2]:
            return op, mine[0]
        break
    raise ValueError(
        f"{problem.who}: feedback stands in place of a readout's transpose, and in this cell no product of a vector "
        f"and a matrix of weights has all that goes from the carry to y; put the readout that loss has into the cell, "
        f"jr.chain(cell, jr.readout(H, O)), or leave feedback='symmetric', the derivative of loss as it is."
    )


def check_feedback(who: str, rule: Any, feedback: Any) -> Any:
    """The option of ``jr.online``; None where the readout's own transpose is meant."""
    if isinstance(feedback, str):
        check_choice(who, "feedback", feedback, FEEDBACK)
        if feedback == "symmetric":
            return None
    elif not hasattr(feedback, "dtype") or not jnp.issubdtype(feedback.dtype, jnp.floating):
        came = getattr(feedback, "dtype", f"{feedback!r:.40} ({type(feedback).__name__})")
        raise TypeError(f"{who}: feedback must be 'symmetric', 'random' or a matrix of floats (O, H), got {came}.")
    if rule not in ("rflo", "eprop"):
        raise ValueError(
            f"{who}: feedback is for rule='rflo' and rule='eprop' alone, got rule={rule!r}, whose errors go back by "
            f"the readout's own transpose; leave it out."
        )
    return feedback


def feedback_matrix(who: str, feedback: Any, key: Any, O: int, H: int) -> Any:
    """B (O, H): drawn from N(0, 1/O), the same at all times, or the one given."""
    if isinstance(feedback, str):
        if key is None:
            raise ValueError(
                f"{who}: feedback='random' draws a matrix and has no key; give init one, key=jax.random.key(0)."
            )
        return jax.random.normal(key, (O, H)) / jnp.sqrt(O)
    if jnp.shape(feedback) != (O, H):
        raise ValueError(
            f"{who}: feedback must have shape {(O, H)}, (O, H) of what the readout puts out and reads, got "
            f"{jnp.shape(feedback)}; of a readout it stands for the transpose of W_hy."
        )
    return jnp.asarray(feedback)
