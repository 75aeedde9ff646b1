"""Free running: what a cell puts out is drawn from, and read at the next step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree, select
from jaxrnn._checks import check_carry_kept, check_key, check_pair
from jaxrnn._narrowing import as_start, check_fits, known_integer
from jaxrnn.decoding._beginning import as_next_input, begin, check_vocabulary, like_first, read_prefix
from jaxrnn.decoding.samplers import Sampler, as_sampler, draws_tokens, noise_of
from jaxrnn.devices.placement import shard_like_batch, vary_alike


class Generated(NamedTuple):
    """What :func:`generate` returns.

    Fields:
        tokens: (steps, *B), or whatever the sampler draws, each leaf (steps, *B, …); ``pad`` after a sequence's end.
        lengths: (*B) integers, the samples of each sequence, the stop symbol among them.
        log_probs: (steps, *B), of each sample in the distribution of the model, 0 after the end; None where the sampler
            does not say.
        sampler_log_probs: the same in the distribution that was drawn from: after temperature and truncation; 0 of
            greedy tokens.
        carry: the final one of each sequence, each leaf (*B, …). It has read all but the last of its samples.
    """

    tokens: PyTree
    lengths: jax.Array
    log_probs: jax.Array | None
    sampler_log_probs: jax.Array | None
    carry: PyTree


@checks_arguments
def generate(
    cell: Cell,
    params: PyTree,
    carry: PyTree,
    first: PyTree,
    *,
    steps: int,
    sample: str | Sampler | Callable[..., PyTree] = "greedy",
    key: jax.Array | None = None,
    stop: int | Callable[[PyTree], jax.Array] | None = None,
    pad: Any = None,
    next_input: Callable[[PyTree], PyTree] | None = None,
    prefix: PyTree = None,
    lengths: jax.Array | None = None,
    noise_key: jax.Array | None = None,
    start: Any = 0,
) -> Generated:
    """Run a cell on its own samples, each sequence of a batch until its own end.

        carry_n, y_n = step(params, carry_{n-1}, next_input(v_{n-1}))        v_0 = first
        v_n ~ p(· | y_n)                                                     n = 1 … steps, or up to the stop symbol

    It is one program once its caller jits it: ``jax.jit(functools.partial(jr.generate, cell, steps=100))``. With
    ``stop`` the loop ends as soon as every sequence has; it is a ``while_loop``, without a reverse derivative. Without
    ``stop`` it is a scan, and can be differentiated by what is not discrete.

    Args:
        cell: a Cell, which puts out logits (*B, V), or what ``sample`` takes. It may close over a batch of its own,
            such as a memory (S, *B, M).
        params: of the cell.
        carry: where to start, each leaf (*B, …); None means ``initial_carry``.
        first: (*B), the token before the first that is drawn, such as a begin symbol; of other samples, one of them.
        steps: the most samples of a sequence.
        sample: "greedy", "temperature", "top_k" or "top_p", which stand for :func:`greedy` and so on with their
            defaults; what these return; or a function ``(key, y) -> sample`` of its own key for each step, for mixture
            densities, points, any pytree whose leaves lead with *B (a :class:`Sampler` says log-probabilities, too).
            What it returns must be of the kind of ``first``.
        key: of the samples; the draw at time t has ``fold_in(key, t)``. A function of yours gets None where it is None.
        stop: a token after which a sequence ends, an int or one integer of an array; or a function from the samples to
            (*B) booleans.
        pad: what stands in ``tokens`` after the end; None means the stop symbol, or 0 where that is a function.
        next_input: from samples to inputs (*B, …); None gives the cell the samples themselves (``jr.embedding`` reads
            tokens). ``lambda token: jax.nn.one_hot(token, V)``, say.
        prefix: (P, *B) tokens that are read after ``first``, before any is drawn.
        lengths: (*B) integers, the valid steps of each prefix, clamped to P: each sequence goes on from its own last.
        noise_key: of the cell's own noise (dropout …); None means evaluation, whether there is a ``key`` or not.
        start: the absolute time of the first step, for a run that goes on after another: ``carry`` and the last tokens
            of that, the same key, and ``start`` the number of its steps give what one run would have. Prefix steps
            count. Times count for the batch: what a shorter prefix lacks is counted, too.

    Returns:
        A :class:`Generated`. After its end a sequence holds its carry.

    Raises:
        ValueError, TypeError: while tracing, for what does not fit: a carry of another batch, a stop symbol that is no
            token, a draw at random without a key, a sampler that is none.

    Example:
        >>> import functools, jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.chain(jr.embedding(10, 4), jr.gru(4, 8), jr.readout(8, 10))
        >>> params = cell.init(jax.random.key(0))
        >>> write = jax.jit(functools.partial(jr.generate, cell, steps=20, sample=jr.decoding.top_k(3), stop=9))
        >>> said = write(params, None, jnp.array([0, 0]), key=jax.random.key(1), prefix=jnp.array([[4, 2], [3, 3]]))
        >>> said.tokens.shape, said.lengths.shape, bool((said.sampler_log_probs >= said.log_probs).all())
        ((20, 2), (2,), True)

    Reference:
        Graves, "Generating sequences with recurrent neural networks", 2013.
    """
    who, stop = "generate", as_stop(stop)
    sampler = as_sampler(who, sample, key)
    for name, given in (("key", key), ("noise_key", noise_key)):
        if given is not None:
            check_key(who if name == "key" else f"{who}: noise_key", given)
    beginning = begin(who, cell, params, carry, first, next_input, tokens=draws_tokens(sampler))
    start = as_start(who, start, steps)
    beginning, P = read_prefix(who, cell, params, beginning, prefix, lengths, next_input, noise_key, start)
    carry, first, batch_shape = beginning
    to_input = as_next_input(next_input)
    times = start + P + jnp.arange(steps, dtype=jnp.int32)
    drawn = noise_of(sampler, key, times, batch_shape)
    noise = None
    if cell.noise is not None and noise_key is not None:
        noise = cell.noise(params, noise_key, times, jax.eval_shape(to_input, first))
    carry, first, noise, drawn = vary_alike(carry, first, noise, drawn)

    def one_step(n, carry, before):
        """``(carry, made)``, made: the sample, its log-probability in the model, that in what it is drawn from."""
        of_cell = () if noise is None else (_at(noise, n, steps),)
        new, y = check_pair(who, cell.step(params, carry, to_input(before), *of_cell))
        check_carry_kept(who, carry, new)
        now, own = sampler.draw(_at(drawn, n, steps), y)
        if draws_tokens(sampler):
            check_vocabulary(who, y.shape[-1], first)
        log_prob = None if sampler.log_prob is None else sampler.log_prob(y, now)
        if stop is not None and not callable(stop):
            _check_stop(who, stop, first, y)
        return new, (like_first(who, now, first), log_prob, own)

    if stop is not None and not callable(stop):
        check_stop(who, stop)
    padding = _padding(who, pad, stop, first)
    if stop is None:
        return _all_steps(one_step, carry, first, batch_shape, steps)
    ends = stop if callable(stop) else lambda now: now == jnp.asarray(stop, now.dtype)
    return _until_all_end(one_step, carry, first, batch_shape, steps, ends, padding)


def _all_steps(one_step, carry, first, batch_shape, steps):
    def body(state, n):
        carry, made = one_step(n, *state)
        return (carry, made[0]), made

    (carry, _), made = jax.lax.scan(body, (carry, first), jnp.arange(steps, dtype=jnp.int32))
    tokens, log_probs, own = made
    lengths = jnp.full_like(jax.tree.leaves(first)[0], steps, shape=batch_shape, dtype=jnp.int32)
    return Generated(tokens, lengths, log_probs, own, carry)


def _until_all_end(one_step, carry, first, batch_shape, steps, ends, padding):
    """The loop that ends with the last sequence; those that have ended are held, and put out padding."""

    def goes_on(state):
        n, _, _, alive, _, _ = state
        return (n < steps) & alive.any()

    def body(state):
        n, carry, before, alive, lengths, outputs = state
        new, (now, *log_probs) = one_step(n, carry, before)
        stopped = ends(now)
        if jnp.result_type(stopped) != np.bool_ or jnp.shape(stopped) != batch_shape:
            raise TypeError(
                f"generate: stop must give booleans {batch_shape}, whether each sequence ends, got "
                f"{jnp.result_type(stopped)} of shape {jnp.shape(stopped)}."
            )
        made = select(alive, (now, *log_probs), (padding, *jax.tree.map(jnp.zeros_like, log_probs)))
        outputs = jax.tree.map(lambda a, row: jax.lax.dynamic_update_index_in_dim(a, row, n, 0), outputs, made)
        lengths = lengths + alive.astype(jnp.int32)
        return n + 1, select(alive, new, carry), made[0], alive & ~stopped, lengths, outputs

    _, (_, *log_probs) = jax.eval_shape(one_step, 0, carry, first)
    like = jax.tree.leaves(first)[0]
    alive = jnp.full_like(like, True, shape=batch_shape, dtype=bool)
    lengths = jnp.full_like(like, 0, shape=batch_shape, dtype=jnp.int32)
    nothing = padding, *jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), log_probs)
    alive, lengths, nothing = shard_like_batch((alive, lengths, nothing), like[None], len(batch_shape))
    padding = nothing[0]
    outputs = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (steps, *a.shape)), nothing)
    alive, lengths, outputs, _ = vary_alike(alive, lengths, outputs, carry)
    state = jax.lax.while_loop(goes_on, body, (jnp.int32(0), carry, first, alive, lengths, outputs))
    _, carry, _, _, lengths, (tokens, log_probs, own) = state
    return Generated(tokens, lengths, log_probs, own, carry)


def _at(noise: PyTree, n: Any, steps: int) -> PyTree:
    """The part of step n: leaves lead with the steps, or with 1 where one draw serves all."""
    return jax.tree.map(lambda a: a[n] if a.shape[0] == steps else a[0], noise)


def _check_stop(who: str, stop: Any, first: PyTree, y: PyTree) -> None:
    """A stop symbol is one of the tokens."""
    is_token = hasattr(first, "dtype") and jnp.issubdtype(first.dtype, jnp.integer)
    if not is_token:
        raise TypeError(f"{who}: stop={stop!r} is a token, but what is drawn is none; give a function of the samples.")
    if hasattr(y, "shape") and y.ndim == first.ndim + 1:
        check_stop(who, stop, y.shape[-1])


def as_stop(stop: Any) -> Any:
    """A stop symbol that is known as an int; all else as it is."""
    token = known_integer(stop)
    return stop if token is None else token


def check_stop(who: str, stop: Any, V: int | None = None) -> None:
    """A stop symbol is one of V tokens; None: of as many as there may be."""
    if isinstance(stop, jax.core.Tracer):
        return
    if isinstance(stop, bool) or not isinstance(stop, int):
        raise TypeError(f"{who}: stop must be a token, an int, got {stop!r} ({type(stop).__name__}).")
    if V is not None and not 0 <= stop < V:
        raise ValueError(f"{who}: stop must be one of the tokens 0 to {V - 1}, got {stop}.")


def _padding(who: str, pad: Any, stop: Any, first: PyTree) -> PyTree:
    value = pad if pad is not None else 0 if stop is None or callable(stop) else stop
    if not isinstance(value, jax.core.Tracer):
        for leaf in jax.tree.leaves(first):
            check_fits(who, "stop" if pad is None else "pad", value, leaf.dtype)
    return jax.tree.map(lambda a: jnp.full_like(a, value), first)
