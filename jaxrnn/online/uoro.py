"""UORO: the influence as an outer product of two vectors, unbiased."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.online.problem import check_forward_mode
from jaxrnn.online.rules import OnlineRule, Start, Step

TINY = 1e-7  # ε of the paper's equations


def uoro() -> OnlineRule:
    """J_t ≈ s_t w_tᵀ with E[s_t wᵀ_t] = J_t.

        s_t = ρ0 D_t s_{t-1} + ρ1 ν       ν: S independent signs
        w_t = w_{t-1} / ρ0 + νᵀ I_t / ρ1

    with ρ0² = |w_{t-1}| / |D_t s_{t-1}| and ρ1² = |νᵀ I_t| / |ν|, which make the two parts equally long.
    """

    def signs(of: Start | Step) -> Any:
        return jax.random.rademacher(of.key, (of.size,), of.problem.carry.dtype)

    def init(start: Start) -> tuple[Any, Any]:
        check_forward_mode(start.problem)
        ν = signs(start)
        return ν, start.pull(ν)

    def update(step: Step, trace: tuple[Any, Any]) -> tuple[Any, Any]:
        s, w = trace
        ν, pushed = signs(step), step.push(s)
        _, direct = step.pull(ν)
        ρ0, ρ1 = (jnp.sqrt((_norm(a) + TINY) / (_norm([b]) + TINY)) for a, b in ((w, pushed), (direct, ν)))
        s = (ρ0 * pushed + ρ1 * ν).astype(s.dtype)  # whose carry may be narrower than params
        return s, [a / ρ0.astype(a.dtype) + b / ρ1.astype(a.dtype) for a, b in zip(w, direct, strict=True)]

    def gradient(step: Step, trace: tuple[Any, Any], u: Any) -> list[Any]:
        s, w = trace
        return [jnp.vdot(u, s).astype(a.dtype) * a for a in w]

    return OnlineRule(init, update, gradient, needs_key=True)


def _norm(arrays: Any) -> Any:
    return jnp.sqrt(sum((jnp.vdot(a, a) for a in arrays), jnp.zeros(())))
