"""What an online rule is: three functions of one sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import PyTree
from jaxrnn._checks import check_tree
from jaxrnn.online.problem import Problem, Theta


class OnlineRule(NamedTuple):
    """A rule of learning online, as three functions of one sequence; ``jr.online(cell, loss, rule=…)`` takes it.

        J_t = ∂h_t/∂θ = D_t J_{t-1} + I_t        D_t = ∂h_t/∂h_{t-1},  I_t = ∂h_t/∂θ, directly

    A rule keeps something that stands for J_t, the influence of the params on the carry: its trace, any pytree of
    arrays. ``h`` is the carry as a vector of S numbers (leaf by leaf, of a complex leaf the real parts, then the
    imaginary ones), θ the params as a list of real arrays (in the order of ``jax.tree.leaves``, of a complex one the
    real part, then the imaginary one). The library takes the rule over the batch, holds the trace where a step is
    masked, and puts that of a fresh start in place where an episode begins.

    Fields:
        init: ``init(start) -> trace``, where a sequence starts: of :class:`Start` are ``size`` (S), ``theta``, ``key``
            and ``pull(u)``, uᵀ ∂h_0/∂θ as a list like θ (zeros unless the initial carry is learned).
        update: ``update(step, trace) -> trace``, after each step: of :class:`Step` are ``size``, ``theta``, ``key``,
            ``h`` (h_{t-1}), ``x``; ``push(v)``, D_t v; ``pull(u)``, the pair uᵀ D_t (S,) and uᵀ I_t, a list like θ.
        gradient: ``gradient(step, trace, u) -> uᵀ J``, a list like θ, J that of the trace. Where y reads h_{t-1} other
            than through h_t, it is called with the trace before the step too, so J must not be made of ``step`` here.
        needs_key: whether it draws; if not, ``key`` is None.

    Example, the immediate influence alone:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> def init(start):  # ν and νᵀ J would do for a rank-1 estimate; here J itself, (S, *shape) each
        ...     return [jnp.zeros((start.size, *a.shape), a.dtype) for a in start.theta]
        >>> def update(step, trace):
        ...     return jax.vmap(lambda u: step.pull(u)[1])(jnp.eye(step.size))
        >>> def gradient(step, trace, u):
        ...     return [jnp.tensordot(u, J, 1) for J in trace]
        >>> rule = jr.gradients.OnlineRule(init, update, gradient)
        >>> cell, loss = jr.elman(2, 3), lambda y, target: ((y - target) ** 2).sum()
        >>> learner = jr.online(cell, loss, rule=rule)
        >>> params = cell.init(jax.random.key(0))
        >>> state, y, grads = learner.step(params, learner.init(params), jnp.ones(2), jnp.zeros(3))
        >>> one_step = jr.online(cell, loss, rule="tbptt", window=1)
        >>> same = one_step.step(params, one_step.init(params), jnp.ones(2), jnp.zeros(3))[2]
        >>> bool(jnp.allclose(grads.W_xh, same.W_xh))
        True
    """

    init: Callable[[Any], PyTree]
    update: Callable[[Any, PyTree], PyTree]
    gradient: Callable[[Any, PyTree, jax.Array], Theta]
    needs_key: bool = False


def checked(who: str, rule: OnlineRule) -> OnlineRule:
    """A user's rule, whose functions must return what they should."""
    for name in ("init", "update", "gradient"):
        if not callable(getattr(rule, name)):
            raise TypeError(f"{who}: {name} of the rule must be a function, got {getattr(rule, name)!r:.80}.")

    def update(step: Step, trace: PyTree) -> PyTree:
        new = rule.update(step, trace)
        check_tree(who, "the trace that the rule returned", new, trace, "return what has the form of init's")
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(trace), strict=True):
            if jnp.result_type(a) != jnp.result_type(b):
                raise TypeError(
                    f"{who}: the rule's update makes {jnp.result_type(a)} of a trace of {jnp.result_type(b)}, and the "
                    f"trace of every step must have the types of init's; cast it, a.astype({jnp.result_type(b)})."
                )
        return new

    def gradient(step: Step, trace: PyTree, u: jax.Array) -> Theta:
        found = rule.gradient(step, trace, u)
        if not isinstance(found, list | tuple):
            raise TypeError(
                f"{who}: the rule's gradient must be a list of arrays like step.theta, got {type(found).__name__}."
            )
        check_tree(who, "the rule's gradient", list(found), step.theta, "return an array for each of step.theta")
        return list(found)

    return rule._replace(update=update, gradient=gradient)


class Start(NamedTuple):
    """Where one sequence starts."""

    problem: Problem
    theta: Theta
    others: list[Any]
    key: Any  # of the rule, one for each sequence and time; None
    fresh: bool  # whether at the cell's initial carry; else at a carry that was given, which depends on no params

    @property
    def size(self) -> int:
        """S, the numbers in the carry of a sequence, a complex one counted as two."""
        return self.problem.carry.size

    def pull(self, u: jax.Array) -> Theta:
        """uᵀ ∂h_0/∂θ."""
        if not self.fresh:
            return [jnp.zeros_like(a) for a in self.theta]
        _, pull = jax.vjp(lambda theta: self.problem.initial(theta, self.others), self.theta)
        return pull(u)[0]


class Step(NamedTuple):
    """One step of one sequence, h_t = F(θ, h_{t-1}, x_t)."""

    problem: Problem
    theta: Theta
    h: jax.Array  # (S,), h_{t-1}
    others: list[Any]  # the leaves of the params that are no floats
    x: PyTree
    noise: PyTree
    key: Any

    @property
    def size(self) -> int:
        """S, the numbers in the carry of a sequence, a complex one counted as two."""
        return self.problem.carry.size

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of ``problem.step``."""
        return self.theta, self.h, self.others, self.x, self.noise

    def push(self, v: jax.Array) -> jax.Array:
        """D_t v."""
        return jax.jvp(lambda h: self._replace(h=h).run(), (self.h,), (v,))[1]

    def pull(self, u: jax.Array) -> tuple[jax.Array, Theta]:
        """``(uᵀ D_t, uᵀ I_t)``."""
        _, pull = jax.vjp(lambda h, theta: self._replace(h=h, theta=theta).run(), self.h, self.theta)
        by_h, by_theta = pull(u)
        return by_h, by_theta

    def run(self) -> jax.Array:
        """h_t."""
        return self.problem.step(*self.arguments)[0]
