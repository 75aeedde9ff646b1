"""Plans, the ways to execute a run over time.

All choices that a plan leaves open are made here, from shapes and platform, by rules that were measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxrnn._spec import registered


@registered
class Plan(NamedTuple):
    """How a run over time is executed. All plans compute the same, up to the order of sums.

    ``jr.scan(cell, plan="auto")`` is ``Plan()``; None leaves a choice to the rules of this file. ``plan="plain"`` uses
    none of this: it is ``jax.lax.scan`` of ``step``.

    Fields:
        fuse: products that share an operand become one: ``h @ W_i``, ``h @ W_f`` … are ``h @ [W_i, W_f, …]``.
        hoist: products that do not depend on the carry, as ``x @ W``, are done for all T steps at once, before the
            loop. None: never on a CPU, elsewhere always.
        contract: the gradient of a weight is one contraction over time and batch, after the backward loop, where
            autodiff adds to it at every step. None: always, except on a single CPU device with less than 8 weights
            for each output of the product.
        recompute: the forward pass saves the smallest set of values from which all else that the backward pass needs
            is cheap to compute again. False saves all that it needs.

    Example:
        >>> import jaxrnn as jr
        >>> layer = jr.scan(jr.lstm(3, 5), plan=jr.Plan(hoist=True))
    """

    fuse: bool = True
    hoist: bool | None = None
    contract: bool | None = None
    recompute: bool = True

    def hoists(self, weights: int, outputs: int) -> bool:
        """Whether a product of the forward pass leaves the loop.

        On a CPU none: the array (T, B, outputs) is written and read again, where the weight stays in cache. Measured on
        two AVX-512 cores, LSTM forward, hoisted / in the loop: I = H = 64: 1.8; 128: 1.2; 256: 1.1 to 1.5; 512: 1.35
        (0.95 before large weights stood on the left); of all cells only the Elman network at 512 gains, 0.8. An
        accelerator gains by launching less inside the loop.
        """
        if self.hoist is not None:
            return self.hoist
        return jax.default_backend() != "cpu"

    def turns(self, weights: int) -> bool:
        """Whether the loop computes sums of products with large weights as ``(Σ Wᵀ xᵀ)ᵀ``.

        A CPU's matrix product packs its right operand anew at every call, here the weight at every step. Measured on
        two AVX-512 cores, LSTM (32, 128, 512, 512), weights 512 × 2048: forward 89 against 125 ms, training step 250
        against 303; at 256 × 1024 nothing is gained, at 128 × 512 a fifth is lost.
        """
        return jax.default_backend() == "cpu" and weights >= 2**20

    def contracts(self, weights: int, outputs: int) -> bool:
        """Whether the gradient of a product's weights leaves the loop.

        With several devices always: a batch sharded over them would be summed over devices at every step. On a single
        CPU adding a weight costs its size, keeping the cotangents for later the size of the product's output. Measured
        on two AVX-512 cores before contractions took their fastest form (H² weights, batch B; contracted / added):
        H/B = 16 to 32: 0.4 to 0.95; H/B = 4: 0.7 to 1.4; H/B below 1: 1.0 to 1.5. So from 8 on.
        """
        if self.contract is not None:
            return self.contract
        if jax.device_count() > 1 or jax.default_backend() != "cpu":
            return True
        return weights >= 8 * outputs


def check_plan(who: str, plan: Any) -> None:
    """ "auto", "plain" or a Plan, its fields True, False or (where a rule may choose) None."""
    if isinstance(plan, Plan):
        for name, value in plan._asdict().items():
            open_to_rules = Plan._field_defaults[name] is None
            if not (isinstance(value, bool) or (value is None and open_to_rules)):
                choices = "True, False or None" if open_to_rules else "True or False"
                raise TypeError(f"{who}: Plan.{name} must be {choices}, got {value!r}.")
    elif not isinstance(plan, str) or plan not in ("auto", "plain"):
        raise ValueError(f"{who}: plan must be one of 'auto', 'plain' or a jr.Plan, got {plan!r}.")
