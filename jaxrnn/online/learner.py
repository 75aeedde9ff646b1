"""Learning online: ``jr.online``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree, expect_cell, name_of, select
from jaxrnn._checks import (
    check_array,
    check_batch_shape,
    check_carry,
    check_choice,
    check_features,
    check_flags,
    check_key,
    check_leads_with_batch,
    check_params,
    check_tree,
    named_loss,
    step_batch_shape,
)
from jaxrnn._narrowing import as_start, check_held
from jaxrnn.online._batch import Batch, Chosen, example
from jaxrnn.online.problem import check_backward, shapes
from jaxrnn.online.rules import OnlineRule, checked
from jaxrnn.online.step_of_batch import Given, all_together, each_by_itself
from jaxrnn.running.scan import shapes_of_params


class OnlineState(NamedTuple):
    """What a learner hands from step to step: a pytree of arrays, to be saved and resumed as it is."""

    carry: PyTree  # the cell's, (*B, …)
    trace: PyTree  # the rule's, (*B, …)
    time: jax.Array  # (): the absolute time of the next step
    key: jax.Array | None  # of the cell's noise and of rules that draw
    skipped: jax.Array | None = None  # (*B): with nonfinite="skip", how many steps of each member were left out


class Online(NamedTuple):
    """What ``jr.online`` makes; both functions are pure."""

    init: Callable[..., OnlineState]  # (params, batch_shape=(), *, x=None, carry=None, key=None, start=0) -> state
    step: Callable[..., tuple[OnlineState, PyTree, PyTree]]  # (params, state, x, target, …) -> (state, y, grads)


@checks_arguments
def online(
    cell: Cell,
    loss: Callable[[PyTree, PyTree], Any],
    *,
    rule: str | OnlineRule = "rtrl",
    window: int | None = None,
    masks: PyTree = None,
    feedback: Any = "symmetric",
    nonfinite: str = "keep",
) -> Online:
    """Gradients at every step of a stream, carried forward in time: nothing of the past is stored but a trace.

        ∂L_t/∂θ = (∂L_t/∂h_t) J_t + ∂L_t/∂θ, directly        L_t = loss(y_t, target_t)
        J_t = ∂h_t/∂θ = D_t J_{t-1} + I_t                    D_t = ∂h_t/∂h_{t-1},  I_t = ∂h_t/∂θ, directly

    The rules differ in what they keep in place of J_t, the influence of the params on the carry. With S the numbers in
    the carry of a sequence (an LSTM has 2 H, a complex number counts as two), P those in the params, k a window:

        rule        what it keeps                           memory           time, beside some passes of the step
        "rtrl"      J_t, exact                              batch × S P      batch × S² P; O(batch × P) for both where
                                                                             the recurrence is diagonal
        "snap1"     M ⊙ (D_t J_{t-1} + I_t), M holding      batch × P        batch × P, for a GRU that resets after and
                    what params reach in one step                            others of one unit each; 1.75 P for an LSTM
        "snap2" …   the same, within n steps ("snap:n")     batch × |M|      batch × Σ r², r: what a param reaches
        "layerwise" J_t within each member of a chain       that of each     that of each
        "eprop"     D̂_t J_{t-1} + I_t, D̂_t within units     batch × P        batch × P, as "snap1"
        "rflo"      Λ_t J_{t-1} + I_t, Λ_t leaks and gates  batch × P        batch × P, as "snap1"
        "uoro"      s wᵀ with E[s wᵀ] = J_t                 batch × (S + P)  batch × P
        "kf_rtrl"   u ⊗ A with E[u ⊗ A] = J_t               batch × S N      batch × S² N, N the numbers that weights
        "kf_rtrl:r" the sum of r of them ("kf_rtrl:4" …)    batch × r S N    batch × r S² N      are multiplied into
        "tbptt"     the last k carries and inputs           batch × k S      batch × k P

    "rtrl" is "snap:n" for all n: M and its size are found from the traced step, for any cell, so a diagonal recurrence
    costs its pattern and no more, and in a chain the params of a later member are not kept for an earlier one. A dense
    cell has all of S × P from n = 2 on; one that mixes units on the way (a GRU that resets before, full peepholes, a
    projection, layer normalisation, several members of a chain) more than P at n = 1 too. How much is kept is the size
    of ``state.trace``.

    "layerwise", "eprop" and "rflo" take a chain member by member: what one carries is differentiated by its own params
    alone, and the error of a step goes back through the members of that step, all that members without a carry get.
    Of a single cell "layerwise" is "rtrl".
    "eprop" holds in D_t what products with weights read of h_{t-1} (Bellec's eligibility vectors, for any cell: of an
    LSTM f_t is left, of a GRU 1 - z_t); "rflo" also what enters any function, so that factors alone are left, a leak or
    a gate (Murray's 1 - 1/τ). Of a leaky network they are one; of diagonal peepholes, say, "eprop" sees more. What is
    computed from the new carry within the step, as h_t of an LSTM, is held by neither. A cell with nothing left, as
    ``elman``, is refused. "kf_rtrl" is for weights in products of a matrix and a vector, others are refused by name;
    vectors, biases too, that are no part of such a sum are kept exactly.

    Args:
        cell: a Cell; ``jr.chain`` makes one of several. Its carry holds real and complex numbers alone.
        loss: ``loss(y, target)`` -> a scalar, of one step and the whole batch: a sum over sequences, or a mean, as you
            write it; ``grads`` are of that. Where ``mask`` is False it sees y = 0 and target = 0.
        rule: a name of the table, or a :class:`jr.gradients.OnlineRule` of your own.
        window: k, of "tbptt" alone.
        masks: params whose masks will not change, as those of ``jr.masked_weights`` while training: the values of
            arrays that no derivative reaches. Weights that they take out are not kept, and M is that of the others.
        feedback: of "eprop" and "rflo": how the error at the readout reaches the carry. The readout is the last
            product z W of a vector and weights on the way from h_t to y_t, in ``jr.chain(cell, jr.readout(H, O))`` that
            of the last member; ∂L/∂z = ∂L/∂(z W) B, and all else, the gradient by W too, is as it is. "symmetric":
            B = Wᵀ, the derivative of ``loss``, whether the readout stands in the cell or in ``loss``. "random":
            B (O, H) drawn from N(0, 1/O) by ``init``'s key, the same at all times. A matrix (O, H): this one. With the
            last two the readout has to stand in the cell, so that ``loss`` sees its output.
        nonfinite: what a step does with a member of the batch whose carry, output, target, trace or gradient is not
            finite: "keep" takes it as it is; "skip" leaves it out as if it were masked, holding its carry and trace,
            and counts it in ``state.skipped``. The gradient of each member is then computed by itself, batch × P.

    Returns:
        ``Online(init, step)``, pure functions that do not jit; ``step`` jits, scans, vmaps and differentiates, by a
        learning rate say (but "kf_rtrl:r": of singular values that are equal there is no derivative).

        ``init(params, batch_shape=(), *, x=None, carry=None, key=None, start=0)`` -> state. x: an input of one step
        (*B, I), or its ``jax.ShapeDtypeStruct``, where it cannot be told from ``cell.input_size``. carry: where to
        start; it depends on no params. None: at the cell's initial carry, whose own params, where it is learned, get
        their gradient. key: of the cell's noise and of rules that draw; None: evaluation. start: the absolute time.

        ``step(params, state, x, target, mask=None, resets=None)`` -> (state, y, grads). x (*B, I), target any pytree
        of arrays that lead with *B. mask, resets (*B) booleans, as in ``jr.scan``: where mask is False carry and trace
        are held, y is 0 and grads has nothing of it; where resets is True both are those of a fresh start before x is
        read. y is that of ``jr.scan``, noise by key and absolute time included. grads: the tree of params, what this
        step adds; leaves that are no floats get zeros. With the params held, their sum over steps is under "rtrl" the
        gradient of Σ_t L_t, as back-propagation through time gives it. With an update at every step, J_t is made of
        steps with older params: the usual bias of learning online, of the order of the learning rate.

    Raises:
        TypeError, ValueError: a Layer, an unknown rule; while tracing a carry with integers, a loss that is no scalar,
            a target that does not lead with the batch, a cell without forward mode (all rules but "tbptt") or through
            which no gradient goes, params of another tree, the state of another rule, no key where one is needed.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr, optax
        >>> cell = jr.chain(jr.gru(3, 5, reset="after"), jr.readout(5, 1))
        >>> learner = jr.online(cell, lambda y, target: ((y - target) ** 2).mean(), rule="snap1")
        >>> params = cell.init(jax.random.key(0))
        >>> optimizer = optax.sgd(0.1)
        >>> @jax.jit
        ... def learn(params, state, opt_state, x, target):
        ...     state, y, grads = learner.step(params, state, x, target)
        ...     updates, opt_state = optimizer.update(grads, opt_state)
        ...     return optax.apply_updates(params, updates), state, opt_state, y
        >>> state, opt_state = learner.init(params, (2,)), optimizer.init(params)
        >>> params, state, opt_state, y = learn(params, state, opt_state, jnp.ones((2, 3)), jnp.zeros((2, 1)))
        >>> y.shape, sum(a.size for a in jax.tree.leaves(state.trace)) // 2  # P of the GRU, for each sequence
        ((2, 1), 140)

    References:
        Williams & Zipser, "A learning algorithm for continually running fully recurrent neural networks", Neural
        Computation 1, 1989 ("rtrl").
        Menick et al., "Practical real time recurrent learning with a sparse approximation to the Jacobian", ICLR 2021.
        Zucchet et al., "Online learning of long-range dependencies", NeurIPS 2023 (diagonal recurrences).
        Tallec & Ollivier, "Unbiased online recurrent optimization", ICLR 2018.
        Mujika, Meier & Steger, "Approximating real-time recurrent learning with random Kronecker factors", NeurIPS
        2018 ("kf_rtrl"); Benzing, Gauy, Mujika, Martinsson & Steger, "Optimal Kronecker-sum approximation of real time
        recurrent learning", ICML 2019 ("kf_rtrl:r").
        Murray, "Local online learning in recurrent networks with random feedback", eLife 8, 2019 ("rflo").
        Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons", Nature
        Communications 11, 2020 ("eprop").
        Williams & Peng, "An efficient gradient-based algorithm for on-line training of recurrent network
        trajectories", Neural Computation 2, 1990 ("tbptt").
    """
    expect_cell("online", cell)
    who = f"online({name_of(cell)})"
    return learner_of(who, cell, loss, rule=rule, window=window, masks=masks, feedback=feedback, nonfinite=nonfinite)


def learner_of(
    who: str,
    cell: Cell,
    loss: Callable[[PyTree, PyTree], Any],
    *,
    rule: str | OnlineRule,
    window: int | None = None,
    masks: PyTree = None,
    feedback: Any = "symmetric",
    nonfinite: str = "keep",
) -> Online:
    """``online`` under the name that its messages begin with."""
    if not isinstance(rule, str | OnlineRule):
        raise TypeError(
            f"{who}: rule must be a name, such as 'rtrl', or a jr.gradients.OnlineRule(init, update, gradient), got "
            f"{rule!r:.80} ({type(rule).__name__})."
        )
    rule = checked(who, rule) if isinstance(rule, OnlineRule) else rule
    chosen, loss = Chosen(who, cell, rule, window, masks, feedback), named_loss(who, loss)
    check_choice(who, "nonfinite", nonfinite, ("keep", "skip"))
    skips = nonfinite == "skip"

    def init(params, batch_shape=(), *, x=None, carry=None, key=None, start=0):
        check_batch_shape(who, batch_shape)
        batch_shape = tuple(batch_shape)
        check_params(who, params, shapes_of_params(cell))
        if key is not None:
            check_key(who, key)
        x = example(who, cell, params, batch_shape, x)
        expected = jax.eval_shape(lambda: cell.initial_carry(params, batch_shape))
        check_leads_with_batch(who, "initial_carry()", expected, batch_shape)
        if carry is not None:
            check_held(who, "carry", carry)
            check_carry(who, carry, expected, batch_shape)
        time = jnp.asarray(as_start(who, start, 1), jnp.int32)
        batch = Batch(who, cell, params, batch_shape, x, key)
        check_backward(batch.problem)
        trace = chosen.start(batch, params, key, time, fresh=carry is None)
        carry = cell.initial_carry(params, batch_shape) if carry is None else carry
        skipped = jnp.zeros(batch_shape, jnp.int32) if skips else None
        return jax.tree.map(jnp.copy, OnlineState(carry, trace, time, key, skipped))  # the caller's stay when donated

    def step(params, state, x, target, mask=None, resets=None):
        if not isinstance(state, OnlineState):
            raise TypeError(f"{who}: state must be what init returned, or the last step, got {type(state).__name__}.")
        if skips and state.skipped is None:
            raise ValueError(f"{who}: this state counts no skipped steps; make it by the init under nonfinite='skip'.")
        if cell.input_size is not None and cell.x_ndim == 1:
            check_features(who, x, cell.input_size)
        check_held(who, "x", x)
        batch_shape = step_batch_shape(who, x, cell.x_ndim)
        check_params(who, params, shapes_of_params(cell))
        check_carry(who, state.carry, jax.eval_shape(lambda: cell.initial_carry(params, batch_shape)), batch_shape)
        for name, flags in (("mask", mask), ("resets", resets)):
            if flags is not None:
                check_array(who, name, flags)
                meaning = "have an input" if name == "mask" else "begin anew"
                check_flags(
                    who, name, jnp.asarray(flags), (batch_shape,), f"True for members that {meaning}", axes="*B"
                )
        check_leads_with_batch(who, "target", target, batch_shape)
        if mask is not None:
            mask = jnp.asarray(mask)
            x, target = (select(mask, a, jax.tree.map(jnp.zeros_like, a)) for a in (x, target))
        batch = Batch(who, cell, params, batch_shape, shapes(x), state.key)
        theta, others = batch.problem.params.split(params)
        noise = batch.draw(params, state.key, state.time)
        key = chosen.keys(state.key, state.time, 0, batch_shape)
        old, trace = batch.problem.carry.flat(state.carry, batch_shape), state.trace
        fresh = lambda: chosen.start(batch, params, state.key, state.time, fresh=True)
        check_tree(who, "state.trace", trace, jax.eval_shape(fresh), "make the state by this learner's own init")
        if resets is not None:
            resets = jnp.asarray(resets)
            old = select(resets, batch.problem.carry.flat(cell.initial_carry(params, batch_shape), batch_shape), old)
            trace = select(resets, fresh(), trace)
        given = Given(batch, theta, others, old, x, noise, key, target, mask)
        put_out = chosen.output(batch.problem, state.key)
        if skips:
            new, updated, y, grads, kept = each_by_itself(chosen, loss, put_out, given, trace)
            was_lost = ~kept if mask is None else mask & ~kept
            skipped = state.skipped + was_lost.astype(jnp.int32)
            new, updated = select(kept, new, old), select(kept, updated, trace)
        else:
            new, updated, y, grads = all_together(chosen, loss, put_out, given, trace)
            skipped = None
        carry = batch.over(batch.problem.carry.tree)(new)
        state = OnlineState(carry, updated, state.time + 1, state.key, skipped)
        return state, y, batch.problem.params.gradient(grads)

    return Online(init, step)
