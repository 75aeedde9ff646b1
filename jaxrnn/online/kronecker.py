"""KF-RTRL: the influence as a Kronecker product, or a sum of r of them, unbiased.

Weights enter a step in products with a vector z, so their direct influence is z ⊗ ∂h_t/∂a_t, a_t = W z + … being what
the products are summed to. Which weights these are, and which vectors, is found from the traced step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.online.parts import TracedStep, traced_step
from jaxrnn.online.problem import Problem, check_forward_mode
from jaxrnn.online.rules import OnlineRule, Start, Step
from jaxrnn.programs.program import Op, evaluate, needed_for, reached_from
from jaxrnn.programs.tracing import flat_program, is_call

TINY = 1e-7  # keeps the ratios of norms finite


class Factor(NamedTuple):
    """Weights of a group: a matrix with the vector that it multiplies, or a vector that is added."""

    weight: int
    vector: int | None  # None: 1
    contracted: int  # the matrix's axis that the vector meets
    size: int


class Group(NamedTuple):
    """Weights that enter by one sum a = Σ W z + b; of weights that are no matrix each its own."""

    sum: int  # the value a; where there is no product, that which moves with the weight itself
    shape: tuple[int, ...]  # of a
    factors: list[Factor]

    @property
    def is_product(self) -> bool:
        return any(f.vector is not None for f in self.factors)


class Structure(NamedTuple):
    """How the params of a cell enter its step."""

    step: TracedStep
    before: list[Op]  # what makes weights of the params
    after: list[Op]  # the rest of the step
    groups: list[Group]
    initial: list[int]  # which arrays of θ the initial carry is made of


def structure_of(problem: Problem) -> Structure:
    """Raises where weights enter otherwise."""
    step = traced_step(problem)
    ops, kinds = needed_for(step.ops, step.new), step.program.kinds
    moving, weights = step.moving(), step.weights()
    after = [op for op in ops if moving.intersection(op.outputs)]
    readers: dict[int, list[tuple[Op, int]]] = {}
    for op in after:
        for place, k in enumerate(op.inputs):
            readers.setdefault(k, []).append((op, place))
    entering = [k for k in dict.fromkeys([*readers, *step.new]) if k in weights]
    sums: dict[int, list[Factor]] = {}
    for k in entering:
        if jnp.issubdtype(kinds[k].dtype, jnp.complexfloating):
            raise ValueError(
                f"{problem.who}: rule 'kf_rtrl' is for weights that are real numbers where they enter the step, and "
                f"params{_name(problem, step, k)} makes complex ones; give rule='rtrl', or rule='uoro'."
            )
        if not jnp.issubdtype(kinds[k].dtype, jnp.floating):
            continue
        if len(kinds[k].shape) < 2:
            sums.setdefault(_summed(k, readers, step), []).append(Factor(k, None, 0, 1))
            continue
        for op, place in readers.get(k, ()):
            vector = _vector_of(op, place, kinds)
            if vector is None or k in step.new:
                enters = "becomes a carry" if k in step.new else f"enters {op.name}"
                raise ValueError(
                    f"{problem.who}: rule 'kf_rtrl' is for weights that enter the step in products of a matrix and a "
                    f"vector, where ∂h_t/∂θ is a Kronecker product, and params{_name(problem, step, k)} {enters}; give "
                    f"rule='uoro', or rule='snap1'."
                )
            (contracted,) = op.params["dimension_numbers"][0][place]
            factor = Factor(k, vector, contracted, kinds[vector].shape[0])
            sums.setdefault(_summed(op.outputs[0], readers, step), []).append(factor)
    groups = []
    for k, factors in sums.items():
        groups.append(Group(k, kinds[k].shape, factors))
    return Structure(step, [op for op in ops if not moving.intersection(op.outputs)], after, groups, _initial(problem))


def _summed(k: int, readers: dict[int, list[tuple[Op, int]]], step: TracedStep) -> int:
    """Followed through sums: the value whose derivatives are those of ``k``, with all that is added to it."""
    kinds = step.program.kinds
    while k not in step.new and len(readers.get(k, ())) == 1:
        ((op, _),) = readers[k]
        out = op.outputs[0]
        floats = all(jnp.issubdtype(kinds[n].dtype, jnp.floating) for n in (k, out))
        if (
            op.name not in ("add", "add_any", "convert_element_type")
            or kinds[out].shape != kinds[k].shape
            or not floats
        ):
            break
        k = out
    return k


def _vector_of(op: Op, place: int, kinds: Any) -> int | None:
    """The vector that a matrix is multiplied by; None where the operation is another."""
    if op.name != "dot_general":
        return None
    (contracted, _), batch = op.params["dimension_numbers"][0], op.params["dimension_numbers"][1]
    other = op.inputs[1 - place]
    is_product = not any(batch) and len(contracted) == 1 and op.inputs[place] != other
    return other if is_product and (len(kinds[op.inputs[place]].shape), len(kinds[other].shape)) == (2, 1) else None


def _name(problem: Problem, step: TracedStep, k: int) -> str:
    """The param that weights are made of, as its path."""
    paths = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(problem.params.treedef.unflatten(problem.params.kinds)):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            paths += [path] * (2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1)
    made = (path for path, number in zip(paths, step.theta, strict=True) if k in reached_from(step.ops, [number]))
    return jax.tree_util.keystr(next(made))


def _initial(problem: Problem) -> list[int]:
    n = len(problem.theta)

    def run(*arrays):
        return [problem.initial(arrays[:n], arrays[n:])]

    program, _, _ = flat_program(run, *problem.theta, *problem.others, flattens=is_call)
    made = set(program.outputs)
    return [i for i, k in enumerate(program.inputs[:n]) if reached_from(program.ops, [k]) & made]


class Jacobians(NamedTuple):
    carried: Any  # D_t (S, S)
    sums: list[Any]  # of each group ∂h_t/∂a (S, n)
    vectors: list[Any]  # of each group with products its vectors side by side, 1 for what is added; None


def jacobians_of(structure: Structure, step: Step) -> Jacobians:
    """Of one step of one sequence: S cotangents are pulled back, which stops at the sums."""
    traced, problem = structure.step, step.problem
    given = traced.values(step.theta, problem.carry.tree(step.h), step.others, step.x, step.noise)
    weights = {**given, **_run(structure.before, given, {})}

    def run(h, deltas):
        known = {**weights, **dict(zip(traced.old, jax.tree.leaves(problem.carry.tree(h)), strict=True))}
        moved = dict(zip((g.sum for g in structure.groups), deltas, strict=True))
        # a weight that is its own sum moves for those that read it here, not for weights that are made of it
        known.update({k: known[k] + moved.pop(k) for k in list(moved) if k in known})
        values = {**known, **_run(structure.after, known, moved)}
        new = problem.carry.treedef.unflatten([values[k] for k in traced.new])
        return problem.carry.flat(new), [_vectors(g, values, h.dtype) for g in structure.groups]

    kinds = traced.program.kinds
    deltas = [jnp.zeros(g.shape, kinds[g.sum].dtype) for g in structure.groups]
    made, pull, vectors = jax.vjp(run, step.h, deltas, has_aux=True)
    by_h, by_sums = jax.vmap(pull)(jnp.eye(step.size, dtype=made.dtype))
    return Jacobians(by_h, [a.reshape(step.size, -1).astype(made.dtype) for a in by_sums], vectors)


def _run(ops: Sequence[Op], known: Any, moved: Any) -> dict[int, Any]:
    """All values that the operations make, those of ``moved`` with so much added."""
    values = dict(known)
    for op in ops:
        outputs = op.run(*(values[k] for k in op.inputs))
        values.update((k, a + moved[k] if k in moved else a) for k, a in zip(op.outputs, outputs, strict=True))
    return values


def _vectors(group: Group, values: Any, dtype: Any) -> Any:
    if not group.is_product:
        return None
    vectors = (jnp.ones(1) if f.vector is None else values[f.vector] for f in group.factors)
    return jnp.concatenate([a.astype(dtype) for a in vectors])


def kf_rtrl(rank: int | None) -> OnlineRule:
    """J_t ≈ Σ_i u_i ⊗ A_i with E[Σ_i u_i ⊗ A_i] = J_t, for each group of weights.

        D_t J_{t-1} + I_t = Σ_i u_i ⊗ D_t A_i + z_t ⊗ ∂h_t/∂a_t        r + 1 products, of which r are made

    ``rank`` None: of the two one by random signs, as Mujika et al.; r: as Benzing et al., with the least variance.
    """

    def init(start: Start) -> dict[str, Any]:
        check_forward_mode(start.problem)
        structure, S, dtype = structure_of(start.problem), start.size, start.problem.carry.dtype
        lead = () if rank is None else (rank,)
        products, others = [], []
        for g in structure.groups:
            n = math.prod(g.shape)
            if g.is_product:
                u = jnp.zeros((*lead, sum(f.size for f in g.factors)), dtype)
                products.append((u, jnp.zeros((*lead, S, n), dtype)))
            else:
                others.append(jnp.zeros((S, n), dtype))
        pulled = jax.vmap(start.pull)(jnp.eye(S, dtype=dtype)) if structure.initial else []
        return {"products": products, "others": others, "initial": [pulled[i] for i in structure.initial]}

    def update(step: Step, trace: dict[str, Any]) -> dict[str, Any]:
        structure = structure_of(step.problem)
        at = jacobians_of(structure, step)
        terms, others = [], []
        old_products, old_others = iter(trace["products"]), iter(trace["others"])
        for place, (g, sums, z) in enumerate(zip(structure.groups, at.sums, at.vectors, strict=True)):
            if g.is_product:
                u, A = next(old_products)
                key = jax.random.fold_in(step.key, place)
                terms.append(Terms(key, u, jnp.matmul(at.carried, A), z.astype(u.dtype), sums))
            else:
                others.append(at.carried @ next(old_others) + sums)
        products = [_one_of_two(t) for t in terms] if rank is None else _fewer(terms)
        initial = [jnp.tensordot(at.carried, J, 1).astype(J.dtype) for J in trace["initial"]]
        return {"products": products, "others": others, "initial": initial}

    def gradient(step: Step, trace: dict[str, Any], u: Any) -> list[Any]:
        structure = structure_of(step.problem)
        traced = structure.step
        by_weight: dict[int, Any] = {}

        def add(f: Factor, a: Any) -> None:
            kind = traced.program.kinds[f.weight]
            a = a.reshape(kind.shape).astype(kind.dtype)
            by_weight[f.weight] = by_weight[f.weight] + a if f.weight in by_weight else a

        products, others = iter(trace["products"]), iter(trace["others"])
        for g in structure.groups:
            if not g.is_product:
                of_sum = u @ next(others)
                for f in g.factors:
                    add(f, of_sum)
                continue
            left, A = next(products)
            left, right = (left[None], (u @ A)[None]) if rank is None else (left, jnp.matmul(u, A))
            first = 0
            for f in g.factors:
                own = left[:, first : first + f.size]
                first += f.size
                if f.vector is None:
                    add(f, own[:, 0] @ right)
                else:
                    add(f, own.T @ right if f.contracted == 0 else right.T @ own)
        wanted = list(by_weight)
        given = traced.values(step.theta, step.problem.carry.tree(step.h), step.others, step.x, step.noise)

        def make(theta):
            return evaluate(structure.before, {**given, **dict(zip(traced.theta, theta, strict=True))}, wanted)

        _, pull = jax.vjp(make, step.theta)
        (sums,) = pull([by_weight[k] for k in wanted])
        for i, J in zip(structure.initial, trace["initial"], strict=True):
            sums[i] = sums[i] + jnp.tensordot(u, J, 1).astype(sums[i].dtype)
        return sums

    return OnlineRule(init, update, gradient, needs_key=True)


class Terms(NamedTuple):
    """Σ_i u_i ⊗ D A_i + z ⊗ ∂h/∂a of a group; of a single product u and A have no axis i."""

    key: Any
    u: Any  # (r, n)
    pushed: Any  # (r, S, m): D A
    z: Any  # (n,)
    sums: Any  # (S, m): ∂h/∂a


def _one_of_two(of: Terms) -> tuple[Any, Any]:
    """Both as one product: the two in random signs, each scaled so that its sides are equally long."""
    c = jax.random.rademacher(of.key, (2,), of.u.dtype)
    p = [jnp.sqrt((_norm(a) + TINY) / (_norm(b) + TINY)) for a, b in ((of.pushed, of.u), (of.sums, of.z))]
    return c[0] * p[0] * of.u + c[1] * p[1] * of.z, c[0] / p[0] * of.pushed + c[1] / p[1] * of.sums


def _norm(a: Any) -> Any:
    return jnp.sqrt(jnp.vdot(a, a))


def _fewer(groups: Sequence[Terms]) -> list[tuple[Any, Any]]:
    """Of each group the r + 1 products as r: by the singular values of Σ_i u_i ⊗ A_i = Qᵀ (Lᵀ R) P.

    All groups' small matrices Lᵀ R are decomposed by one call: XLA's CPU client stops for good where several such calls
    stand side by side in a program, each for a wide batch, and all of its threads wait for one another.
    """
    if not groups:
        return []
    Qs, Ls = zip(*(_orthonormal(jnp.concatenate([t.u, t.z[None]])) for t in groups), strict=True)
    right = (jnp.concatenate([t.pushed, t.sums[None]]) for t in groups)
    Ps, Rs = zip(*(_orthonormal(a.reshape(len(a), -1)) for a in right), strict=True)
    U, σ, Vt = jnp.linalg.svd(jnp.stack([L.T @ R for L, R in zip(Ls, Rs, strict=True)]))
    mixed = jax.vmap(_mixed)(jnp.stack([t.key for t in groups]), σ)
    left, right = U @ mixed, jnp.swapaxes(Vt, 1, 2) @ mixed
    return [
        (l.T @ Q, (v.T @ P).reshape(t.pushed.shape)) for t, Q, l, P, v in zip(groups, Qs, left, Ps, right, strict=True)
    ]


def _orthonormal(rows: Any) -> tuple[Any, Any]:
    """``(Q, R)`` with R Q the rows: each made orthogonal to those before it, twice over.

    Where a row is a sum of others its row of Q is 0, and its column of R.
    """
    count, eps = len(rows), jnp.finfo(rows.dtype).eps

    def add(j: Any, found: Any) -> Any:
        Q, R = found
        row = rows[j]
        first = Q @ row
        v = row - first @ Q
        second = Q @ v
        v = v - second @ Q
        left = _norm(v)
        is_new = left > 8 * eps * _norm(row)
        Q = Q.at[j].set(jnp.where(is_new, v / jnp.where(is_new, left, 1), 0))
        return Q, R.at[j].set((first + second).at[j].set(jnp.where(is_new, left, 0)))

    return jax.lax.fori_loop(0, count, add, (jnp.zeros_like(rows), jnp.zeros((count, count), rows.dtype)))


def _mixed(key: Any, σ: Any) -> Any:
    """(r + 1, r): the large singular values as they are, the others mixed at random.

        Σ_i σ_i l_i r_iᵀ               of σ_{m+1} … σ_{r+1}, k = r - m more than may be kept, with s their sum,
        s/k (c ⊙ l) Z Zᵀ (c ⊙ r)ᵀ      Z Zᵀ = 1 - q qᵀ, q_i² = 1 - k σ_i / s, c independent signs

    m is the smallest with k σ_{m+1} <= s. In the mean this is the sum, and no unbiased one varies less.
    """
    r = len(σ) - 1
    tails = jnp.cumsum(σ[::-1])[::-1]
    kept = r - jnp.arange(r)
    m = jnp.argmax(kept * σ[:r] <= tails[:r] * (1 + 8 * jnp.finfo(σ.dtype).eps))  # always true of the last
    k, s = r - m, tails[m]
    behind = jnp.arange(r + 1) >= m
    last = jnp.arange(r + 1) == r
    q = jnp.where(behind & (s > 0), jnp.sqrt(jnp.maximum(1 - k * σ / jnp.where(s > 0, s, 1), 0)), 0)
    q = jnp.where(s > 0, q / jnp.where(s > 0, _norm(q), 1), last)
    w = last - q  # the reflection that takes the last axis to q takes the others to a basis of what is left
    long = _norm(w)
    w = jnp.where(long > 1e-6, w / jnp.where(long > 1e-6, long, 1), 0)
    Z = (jnp.eye(r + 1, dtype=σ.dtype) - 2 * jnp.outer(w, w))[:, :r]
    scale = jnp.sqrt(jnp.where(behind[:r], s / k, σ[:r]))
    return jax.random.rademacher(key, (r + 1, 1), σ.dtype) * Z * scale
