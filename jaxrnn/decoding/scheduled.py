"""Between teacher forcing and free running: scheduled sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree, select
from jaxrnn._checks import check_key
from jaxrnn._narrowing import as_lengths, as_start, check_held
from jaxrnn.decoding._beginning import as_next_input, begin, check_sequence, check_vocabulary, like_first, shifted
from jaxrnn.decoding.samplers import Sampler, as_sampler, draws_tokens, noise_of
from jaxrnn.running.scan import scan


@checks_arguments
def scheduled_sampling(
    cell: Cell,
    params: PyTree,
    targets: PyTree,
    carry: PyTree = None,
    *,
    first: PyTree,
    rate: Any,
    key: jax.Array | None,
    sample: str | Sampler | Callable[..., PyTree] = "temperature",
    next_input: Callable[[PyTree], PyTree] | None = None,
    lengths: jax.Array | None = None,
    noise_key: jax.Array | None = None,
    start: Any = 0,
) -> tuple[PyTree, PyTree]:
    """A run that reads, at each step, its target of the step before, or with some probability its own sample.

        carry_n, y_n = step(params, carry_{n-1}, next_input(v_n))
        v_n = own_{n-1} with probability rate, else target_{n-1}        v_1 = first, own_n ~ p(· | y_n)

    Rate 0 is teacher forcing, rate 1 free running. It is one scan of T steps, by ``jr.scan``, and can be differentiated
    by the outputs: not by what was drawn, where that is discrete. The loss is the caller's, of the outputs and targets.

    Args:
        cell: a Cell.
        params: of the cell.
        targets: (T, *B) tokens, or of other samples the like, each leaf (T, *B, …).
        carry: where to start; None means ``initial_carry``.
        first: what is read at the first step, (*B).
        rate: from 0 to 1: a number, which may be traced, as one that grows over training is, or (T,), one a step.
        key: of coins and samples, ``k_coins, k_samples = jax.random.split(key)``. The coins at time t have
            ``fold_in(k_coins, t)``, one for each sequence; samples are those of ``jr.generate(key=k_samples)``.
        sample: how its own are drawn, as for ``jr.generate``.
        next_input: from samples to inputs, as for ``jr.generate``.
        lengths: (*B) integers, the valid steps; beyond them the outputs are 0 and the carry is held.
        noise_key: of the cell's own noise; None means evaluation.
        start: the absolute time of the first step, for chunks; the first step of each reads its ``first`` as it is.

    Returns:
        ``(carry, ys)``: the carry after the last valid step of each sequence, and the outputs (T, *B, O), logits say.

    Raises:
        ValueError, TypeError: while tracing, for what does not fit; a rate outside [0, 1], where its value is known.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.chain(jr.embedding(10, 4), jr.gru(4, 8), jr.readout(8, 10))
        >>> params, targets = cell.init(jax.random.key(0)), jnp.array([[3, 1], [4, 1], [5, 9]])
        >>> run = jr.decoding.scheduled_sampling
        >>> carry, logits = run(cell, params, targets, first=jnp.array([0, 0]), rate=0.25, key=jax.random.key(1))
        >>> logits.shape
        (3, 2, 10)

    Reference:
        Bengio, Vinyals, Jaitly & Shazeer, "Scheduled sampling for sequence prediction with recurrent neural networks",
        NeurIPS 2015.
    """
    who = "scheduled_sampling"
    if key is None:
        raise ValueError(f"{who}: it is random, and needs a key; give key=jax.random.key(0), say.")
    check_key(who, key)
    if noise_key is not None:
        check_key(f"{who}: noise_key", noise_key)
    k_coins, k_samples = jax.random.split(key)
    sampler = as_sampler(who, sample, k_samples)
    tokens = draws_tokens(sampler)
    carry, first, batch_shape = begin(who, cell, params, carry, first, next_input, tokens=tokens)
    check_held(who, "targets", targets)
    targets = jax.tree.map(jnp.asarray, targets)
    check_sequence(who, "targets", targets, first, batch_shape)
    lengths = None if lengths is None else as_lengths(who, lengths, batch_shape)
    T = jax.tree.leaves(targets)[0].shape[0]
    start = as_start(who, start, T)
    times = start + jnp.arange(T, dtype=jnp.int32)
    rates = _rates(who, rate, T)
    coins = jax.vmap(lambda time: jax.random.uniform(jax.random.fold_in(k_coins, time), batch_shape))(times)
    use_own = coins < rates.reshape(T, *(1,) * len(batch_shape))
    use_own = use_own & (times > times[:1]).reshape(T, *(1,) * len(batch_shape))  # nothing has been drawn before
    to_input = as_next_input(next_input)

    def initial_carry(params, batch_shape=()):
        return cell.initial_carry(params, batch_shape), first

    def noise(params, key, times, x):
        x = jax.eval_shape(to_input, x[0])
        of_cell = None
        if cell.noise is not None and noise_key is not None:
            of_cell = cell.noise(params, noise_key, times, x)
        return of_cell, noise_of(sampler, key, times, batch_shape)

    def step(params, carry, x, noise):
        (carry, own), (target, use_own), (of_cell, drawn) = carry, x, noise
        before = select(use_own, own, target)
        new, y = cell.step(params, carry, to_input(before), *(() if of_cell is None else (of_cell,)))
        now, _ = sampler.draw(drawn, y)
        if tokens:
            check_vocabulary(who, y.shape[-1], first)
        return (new, like_first(who, now, first)), y

    x_ndim = jax.tree.map(lambda a: a.ndim - len(batch_shape), first), 0
    looped = Cell(cell.init, initial_carry, step, noise=noise, x_ndim=x_ndim)
    xs = shifted(first, targets), use_own
    (carry, _), ys = scan(looped).apply(params, xs, (carry, first), lengths=lengths, key=k_samples, start=start)
    return carry, ys


def _rates(who: str, rate: Any, T: int) -> jax.Array:
    """(T,) probabilities."""
    if not isinstance(rate, jax.core.Tracer):
        values = np.asarray(rate)  # by NumPy: what JAX computes of a number under jit is a tracer, too
        if values.dtype.kind not in "fiu" or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{who}: rate must be from 0 to 1, a number or one for each step, got {rate!r:.80}.")
    rates = jnp.asarray(rate, jnp.float32)
    if rates.shape not in ((), (T,)):
        raise ValueError(f"{who}: rate must be one number, or (T,) of them, here ({T},), got shape {rates.shape}.")
    return jnp.broadcast_to(rates, (T,))
