"""Plans, the ways to execute a run over time: data, no more."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxrnn._checks import nearest
from jaxrnn._spec import registered
from jaxrnn.kernels.persistent import missing_for_kernels


@registered
class Plan(NamedTuple):
    """How a run over time is executed. All plans compute the same, up to the order of sums.

    ``jr.scan(cell, plan="auto")`` is ``Plan()``; None leaves a choice to rules that were measured. ``plan="plain"``
    uses none of this: it is ``jax.lax.scan`` of ``step``. ``jaxrnn/planning/__init__.py`` explains what is done.

    Fields:
        fuse: products that share an operand become one: ``h @ W_i``, ``h @ W_f`` … are ``h @ [W_i, W_f, …]``. None:
            on a CPU where they have at most 2¹⁴ weights, or where there is a gradient and the products of all steps
            have more outputs than they have weights; elsewhere always. On a CPU sums of two, ``h @ W + x @ V``, become
            ``[h, x] @ [W; V]``, where that takes no more memory, and gradients that meet in a sum, the bias's too, one
            contraction, where that takes little. False does none of it.
        hoist: products that do not depend on the carry, as ``x @ W``, are done for all T steps at once, before the
            loop. None: on a CPU only where the step has one row and weights of 2¹⁰ numbers, elsewhere always.
        contract: the gradient of a weight is one contraction over time and batch, after the backward loop, where
            autodiff adds to it at every step. None: always, except on a single CPU device with more than one row: there
            not at all with no more weights than cotangents of a step, or few more where all is little, and of more than
            2²¹ cotangents over all steps for up to 32 steps at once, within the loop, where that divides the steps and
            a step has more of them than its carry has numbers.
        recompute: the forward pass saves the smallest set of values from which all else that the backward pass needs
            is cheap to compute again. False saves all that it needs.
        one_kernel: on one CPU device the loop becomes one kernel, in which nothing is handed over from one operation to
            the next, where all that the step does is to multiply few rows by weights and small elementwise work. None:
            where it multiplies one row by at most 2¹⁹ weights, or R rows by at most 2¹⁵ / R.
        persistent_kernel: on one GPU the loop becomes one kernel that keeps the weights in shared memory for all steps,
            where the step is one that such a kernel can hold; ``jr.explain`` says where it is not, and why. Never run
            on a GPU so far, so never on by itself. "interpret" runs it by Pallas' interpreter, on any device and very
            slowly: to see that it computes the same. Needs JAX 0.12 or later.
        pack: sequences of different lengths share lanes, two each, the longest with the shortest, and the loop ends
            with the last of them: for lengths spread evenly up to T about T steps of half the rows. Where ``lengths``
            or a mask is given, B is 3 or more, and the step treats each row by itself, which is looked at; else
            ``jr.explain`` says why not. Not where ``checkpoint`` or ``unroll`` is given, nor for a batch over a mesh
            outside ``shard_map``. Under ``vmap`` all steps are run. False unless you ask: lengths are not known where
            plans are made, where all are equal it takes up to a third longer, and a model of many short rows, whose
            time goes into its arrays, gains in forward runs alone (docs/plans.md).

    Example:
        >>> import jaxrnn as jr
        >>> layer = jr.scan(jr.lstm(3, 5), plan=jr.Plan(hoist=True))
    """

    fuse: bool | None = None
    hoist: bool | None = None
    contract: bool | None = None
    recompute: bool = True
    one_kernel: bool | None = None
    persistent_kernel: bool | str = False
    pack: bool = False


def check_plan(who: str, plan: Any) -> None:
    """ "auto", "plain" or a Plan, its fields True, False or (where a rule may choose) None."""
    if isinstance(plan, Plan):
        for name, value in plan._asdict().items():
            if name == "persistent_kernel":
                _check_persistent_kernel(who, value)
                continue
            open_to_rules = Plan._field_defaults[name] is None
            if not (isinstance(value, bool) or (value is None and open_to_rules)):
                choices = "True, False or None" if open_to_rules else "True or False"
                raise TypeError(f"{who}: Plan.{name} must be {choices}, got {value!r}.")
    elif not isinstance(plan, str) or plan not in ("auto", "plain"):
        meant = nearest(plan.lower(), ("auto", "plain")) if isinstance(plan, str) else "."
        raise ValueError(f"{who}: plan must be one of 'auto', 'plain' or a jr.Plan, got {plan!r}{meant}")


def _check_persistent_kernel(who: str, value: Any) -> None:
    if not isinstance(value, bool) and value != "interpret":
        raise TypeError(f"{who}: Plan.persistent_kernel must be True, False or 'interpret', got {value!r}.")
    if value == "interpret" and (missing := missing_for_kernels(interpreted=True)):
        raise ValueError(f"{who}: Plan.persistent_kernel='interpret' cannot be had: {missing}; use plan='auto'.")
