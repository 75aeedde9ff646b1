"""How far the rules of learning online are from back-propagation through time, on a cell and data of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree, expect_cell, name_of
from jaxrnn._checks import (
    check_carry_kept,
    check_inexact_carry,
    check_key,
    check_leads_with_batch,
    check_pair,
    check_params,
    check_scalar_loss,
    named_loss,
    sequence_shape,
)
from jaxrnn.online.learner import Online, learner_of
from jaxrnn.online.problem import params_of
from jaxrnn.online.rules import OnlineRule
from jaxrnn.running.scan import shapes_of_params

RULES = ("rtrl", "snap1", "uoro")
RANDOM = ("uoro", "kf_rtrl")  # whose names begin so


class Comparison(NamedTuple):
    """Gradients g, one for each draw of a rule, beside the exact one g*; NaN where g* is 0."""

    cosine: np.ndarray  # the mean over draws of g · g* / (|g| |g*|)
    norm: np.ndarray  # the mean over draws of |g| / |g*|
    bias: np.ndarray  # |mean g - g*| / |g*|; of a random rule it has an error of deviation / √draws
    deviation: np.ndarray  # the root of the variance over draws, summed over the numbers of g, / |g*|


class Agreement(NamedTuple):
    """What ``agreement`` found, R rules, N arrays of params, T lags. Printed, it is a table."""

    rules: tuple[str, ...]
    params: tuple[str, ...]  # the paths of the arrays
    whole: Comparison  # (R,) each: of the whole gradient
    by_param: Comparison  # (R, N): of the gradient by each array
    by_lag: Comparison  # (R, T): of what of it the steps so many steps before each loss add
    draws: int  # of the rules that draw

    def __str__(self) -> str:
        T = self.by_lag.norm.shape[1]
        lags = [k for k in (0, 1, 2, 3, 5, 8, 13, 20, 30, 50, 80, 130, 200, 300, 500) if k < T]
        width = max(map(len, self.rules)) + 2
        lines = [f"beside back-propagation through {T} steps; random rules: {self.draws} draws", ""]

        def table(title: str, columns: Sequence[str], rows: np.ndarray) -> None:
            wide = [max(len(c), 9) + 2 for c in columns]
            lines.append(title.ljust(width) + "".join(c.rjust(w) for c, w in zip(columns, wide, strict=True)))
            for name, row in zip(self.rules, rows, strict=True):
                cells = (f"{value:.3f}".rjust(w) for value, w in zip(row, wide, strict=True))
                lines.append(name.ljust(width) + "".join(cells))
            lines.append("")

        table("rule", Comparison._fields, np.stack(self.whole, 1))
        table("cosine", self.params, self.by_param.cosine)
        table("cosine", [f"lag {k}" for k in lags], self.by_lag.cosine[:, lags])
        table("norm", [f"lag {k}" for k in lags], self.by_lag.norm[:, lags])
        return "\n".join(lines[:-1])


def squared_error(y: PyTree, target: PyTree) -> jax.Array:
    """Σ |y - target|² / 2."""
    errors = jax.tree.map(lambda a, b: (jnp.abs(a - b) ** 2).sum() / 2, y, target)
    return jax.tree.reduce(jnp.add, errors)


@checks_arguments
def agreement(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    targets: PyTree,
    rules: Any = RULES,
    *,
    loss: Callable[[PyTree, PyTree], Any] = squared_error,
    key: jax.Array | None = None,
    draws: int = 32,
) -> Agreement:
    """How wrong the rules of ``jr.online`` are on a cell: beside BPTT, by parameter and by lag.

        g* = Σ_t ∂L_t/∂θ = Σ_k g*_k        g*_k: by the θ that step t - k uses, summed over t; k the lag

    A rule's part of lag k is what it adds to Σ_t ∂L_t/∂θ when its trace begins k steps before each t and not one step
    later; so the parts sum to its gradient. What a learned initial carry gets counts as of the first step. The cell is
    evaluated without noise.

    Args:
        cell: a Cell, as for ``jr.online``.
        params, xs: as for ``jr.scan(cell).apply``: xs (T, *B, I).
        targets: any pytree of arrays that lead with (T, *B).
        rules: names that ``jr.online`` takes, or a dict: under each name such a name, an ``OnlineRule``, or a dict of
            the options of ``jr.online``, {"window 5": {"rule": "tbptt", "window": 5}}.
        loss: ``loss(y, target)`` -> a scalar, as for ``jr.online``; Σ |y - target|² / 2 by default.
        key: of the rules that draw, and of random feedback.
        draws: how often each of these is drawn; others run once.

    Returns:
        An :class:`Agreement` of NumPy arrays; ``print`` it, or draw it by ``jr.plotting.agreement``.

    Cost: T runs of T steps for each rule and draw, the draws of a rule at once. A compilation for each rule.

    Raises:
        ValueError, TypeError: as ``jr.online``, and no key where a rule draws, T = 0, targets that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.elman(2, 3)
        >>> params = cell.init(jax.random.key(0))
        >>> xs = jax.random.normal(jax.random.key(1), (5, 2, 2))
        >>> found = jr.gradients.agreement(cell, params, xs, jnp.zeros((5, 2, 3)), ["snap1"])
        >>> found.by_lag.norm.shape, bool(found.by_lag.bias[0, 0] < 1e-5 < found.by_lag.bias[0, 1])
        ((1, 5), True)

    Reference:
        Marschall, Cho & Savin, "A unified framework of online learning algorithms for training recurrent neural
        networks", Journal of Machine Learning Research 21, 2020, which compares rules so.
    """
    expect_cell("agreement", cell)
    who = f"agreement({name_of(cell)})"
    cell = cell if cell.noise is None else cell._replace(noise=None)
    named = _named(who, rules)
    check_params(who, params, shapes_of_params(cell))
    T, batch_shape = sequence_shape(who, xs, cell.x_ndim)
    if T == 0:
        raise ValueError(f"{who}: xs has T = 0 steps, so there is no gradient; give at least 1.")
    xs, targets = (jax.tree.map(jnp.asarray, tree) for tree in (xs, targets))
    check_leads_with_batch(who, "targets", targets, (T, *batch_shape))
    if key is not None:
        check_key(who, key)
    learners = [learner_of(who, cell, loss, **options) for options in named.values()]
    randoms = [name for name, options in named.items() if _draws(options)]
    if randoms and key is None:
        raise ValueError(f"{who}: rule {randoms[0]!r} draws at random and has no key; give key=jax.random.key(0).")
    if jax.tree.leaves(carry := jax.eval_shape(cell.initial_carry, params)):
        check_inexact_carry(who, carry)
    if loss is squared_error:
        _check_targets(who, cell, params, xs, targets)
    if any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves((params, xs, targets, key))):
        raise TypeError(f"{who}: params, xs, targets and key must have values; call it outside of what is traced.")

    def flat(grads: PyTree) -> list[Any]:
        return _flat(grads, params)

    exact = [np.asarray(a, float) for a in jax.jit(lambda p: flat(_by_lag(who, cell, p, xs, targets, loss)))(params)]
    carries = jax.jit(lambda p: _carries(who, cell, p, xs))(params)
    rows = []
    for name, learner in zip(named, learners, strict=True):
        keys = jax.random.split(key, draws) if name in randoms and key is not None else None

        def drawn(params, key, learner=learner):
            return flat(_of_rule(learner, params, xs, targets, carries, batch_shape, key))

        run = jax.jit(drawn if keys is None else jax.vmap(drawn, in_axes=(None, 0)))
        found = [np.asarray(a, float) for a in run(params, keys)]
        rows.append([a[None] if keys is None else a for a in found])
    whole = [_compare([a.sum(1) for a in row], [a.sum(0) for a in exact]) for row in rows]
    by_param = [[_compare([a.sum(1)], [b.sum(0)]) for a, b in zip(row, exact, strict=True)] for row in rows]
    by_lag = [[_compare([a[:, k] for a in row], [a[k] for a in exact]) for k in range(T)] for row in rows]
    return Agreement(tuple(named), _paths(params), _stacked(whole), _stacked(by_param), _stacked(by_lag), draws)


def _check_targets(who: str, cell: Cell, params: PyTree, xs: PyTree, targets: PyTree) -> None:
    """Under the squared error targets are like the outputs."""

    def outputs(params, xs):
        _, batch_shape = sequence_shape(who, xs, cell.x_ndim)
        return jax.vmap(lambda x: cell.step(params, cell.initial_carry(params, batch_shape), x)[1])(xs)

    ys = jax.eval_shape(outputs, params, xs)
    wanted, came = ([a.shape for a in jax.tree.leaves(tree)] for tree in (ys, targets))
    if len({jax.tree.structure(tree) for tree in (ys, targets)}) > 1 or wanted != came:
        raise ValueError(
            f"{who}: targets must have the shapes of the outputs, {', '.join(map(str, wanted))}, for the squared "
            f"error, got {', '.join(map(str, came)) or 'none'}; give loss=…, a function of y and target, for others."
        )


def _named(who: str, rules: Any) -> dict[str, dict[str, Any]]:
    """The options of ``jr.online`` under the name of each rule."""
    if isinstance(rules, Sequence) and not isinstance(rules, str) and all(isinstance(r, str) for r in rules):
        rules = {rule: rule for rule in rules}
    if not isinstance(rules, Mapping) or not rules:
        raise TypeError(
            f"{who}: rules must be names, ['rtrl', 'snap1'], or a dict of a name, an OnlineRule or the options of "
            f"jr.online for each, got {rules!r:.60}."
        )
    named = {}
    for name, rule in rules.items():
        options = dict(rule) if isinstance(rule, Mapping) else {"rule": rule}
        unknown = options.keys() - {"rule", "window", "masks", "feedback"}
        if unknown or "rule" not in options:
            raise ValueError(
                f"{who}: rules[{name!r}] must have the options of jr.online, rule, window, masks, feedback, got "
                f"{', '.join(map(repr, options)) or 'none'}."
            )
        named[str(name)] = options
    return named


def _draws(options: Mapping[str, Any]) -> bool:
    rule, feedback = options["rule"], options.get("feedback")
    is_random = rule.needs_key if isinstance(rule, OnlineRule) else str(rule).startswith(RANDOM)
    return is_random or (isinstance(feedback, str) and feedback == "random")


def _paths(params: PyTree) -> tuple[str, ...]:
    found = jax.tree_util.tree_leaves_with_path(params)
    paths = (jax.tree_util.keystr(path) for path, a in found if jnp.issubdtype(jnp.result_type(a), jnp.inexact))
    return tuple(path.lstrip(".") or "params" for path in paths)


def _flat(grads: PyTree, params: PyTree) -> list[Any]:
    """Of one gradient, or several along leading axes: (…, numbers) for each array of floats."""
    made = []
    for g, a in zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True):
        if jnp.issubdtype(jnp.result_type(a), jnp.inexact):
            lead = g.shape[: g.ndim - jnp.ndim(a)]
            parts = [g.real, g.imag] if jnp.iscomplexobj(g) else [g]
            made.append(jnp.concatenate([p.reshape(*lead, -1) for p in parts], -1))
    return made


def _carries(who: str, cell: Cell, params: PyTree, xs: PyTree) -> PyTree:
    """The carry before each step, (T, *B, …)."""
    _, batch_shape = sequence_shape(who, xs, cell.x_ndim)

    def step(carry, x):
        new, _ = check_pair(who, cell.step(params, carry, x))
        check_carry_kept(who, carry, new)
        return new, carry

    return jax.lax.scan(step, cell.initial_carry(params, batch_shape), xs)[1]


def _by_lag(who: str, cell: Cell, params: PyTree, xs: PyTree, targets: PyTree, loss: Any) -> PyTree:
    """g*_k, (T, …): all losses at once, one step further back after the other."""
    T, batch_shape = sequence_shape(who, xs, cell.x_ndim)
    parts = params_of(params)
    theta, others = parts.split(params)
    carries = _carries(who, cell, params, xs)
    steps = jnp.arange(T)

    def lost(theta, carries):
        def of(carry, x, target):
            _, y = check_pair(who, cell.step(parts.join(theta, others), carry, x))
            value = named_loss(who, loss)(y, target)
            check_scalar_loss(who, value, "loss(y, target)")
            return value

        return jax.vmap(of)(carries, xs, targets).sum()

    def stepped(theta, carries, xs):
        return jax.vmap(lambda carry, x: cell.step(parts.join(theta, others), carry, x)[0])(carries, xs)

    def started(theta):
        return cell.initial_carry(parts.join(theta, others), batch_shape)

    def at_start(v, lag):
        """Of the loss of step ``lag``, which that lag leads to the start."""
        _, pull = jax.vjp(started, theta)
        return pull(jax.tree.map(lambda a: a[lag], v))[0]

    def where(on, tree):
        return jax.tree.map(lambda a: jnp.where(on.reshape(-1, *(1,) * (a.ndim - 1)), a, 0), tree)

    def back(v, lag):
        on, place = steps >= lag, jnp.maximum(steps - lag, 0)
        h, x = (jax.tree.map(lambda a: a[place], tree) for tree in (carries, xs))
        _, pull = jax.vjp(lambda theta, h: stepped(theta, h, x), theta, h)
        by_theta, v = pull(where(on, v))
        return v, jax.tree.map(jnp.add, by_theta, at_start(v, lag))

    by_theta, v = jax.grad(lost, (0, 1))(theta, carries)
    first = jax.tree.map(jnp.add, by_theta, at_start(v, 0))
    _, rest = jax.lax.scan(back, v, jnp.arange(1, T))
    lags = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
    return jax.vmap(parts.gradient)(lags)


def _of_rule(
    learner: Online, params: PyTree, xs: PyTree, targets: PyTree, carries: PyTree, batch_shape: Any, key: Any
) -> PyTree:
    """A rule's part of each lag, (T, …)."""
    T = len(jax.tree.leaves(xs)[0])
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)

    def started(sums, first):
        """With what a trace adds to each lag that begins at the step ``first``; 0 before that."""
        own = {"x": x, "key": key}
        begun = learner.init(params, batch_shape, carry=jax.tree.map(lambda a: a[first], carries), **own)
        fresh = learner.init(params, batch_shape, **own)  # whose initial carry depends on params
        trace = jax.tree.map(lambda a, b: jnp.where(first == 0, a, b), fresh.trace, begun.trace)

        def step(state, inputs):
            on = jnp.broadcast_to(inputs[2], batch_shape)
            state, _, grads = learner.step(params, state, *inputs[:2], mask=on)
            return state, grads

        _, grads = jax.lax.scan(step, begun._replace(trace=trace), (xs, targets, jnp.arange(T) >= first))

        def add(sums, a):  # what comes round is of steps before, and 0
            before = jnp.where(first > 0, jnp.roll(a, 1 - first, 0), 0)
            return sums + jnp.roll(a, -first, 0) - before

        return jax.tree.map(add, sums, grads), None

    zeros = jax.tree.map(lambda a: jnp.zeros((T, *jnp.shape(a)), jnp.result_type(a)), params)
    return jax.lax.scan(started, zeros, jnp.arange(T))[0]


def _compare(drawn: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Of gradients (draws, numbers) in parts."""
    g, true = np.concatenate(drawn, -1), np.concatenate(exact, -1)
    size, sizes = np.linalg.norm(true), np.linalg.norm(g, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = (g @ true / (sizes * size)).mean()
        mean = g.mean(0)
        values = (sizes.mean(), np.linalg.norm(mean - true), np.sqrt(((g - mean) ** 2).sum(-1).mean()))
        return (cosine, *(a / size if size else np.nan for a in values))


def _stacked(values: Any) -> Comparison:
    return Comparison(*np.moveaxis(np.asarray(values), -1, 0))
