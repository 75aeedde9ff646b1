"""How a sample is drawn from an output: greedy, by temperature, among the likeliest, or by a function of yours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import PyTree
from jaxrnn._checks import check_choice
from jaxrnn._dtypes import accumulator, promoted


class Sampler(NamedTuple):
    """How a sample is drawn from the output of a step.

    Fields:
        draw: ``draw(noise, y) -> (sample, log_prob)``: a sample, each leaf leading with *B, and its log-probability
            (*B) in the distribution that it is drawn from; None where that is not known.
        log_prob: ``log_prob(y, sample) -> (*B)``, in the distribution of the model; None where it is not known.
        noise: ``noise(key, batch_shape) -> noise``, all that is random in one draw. It is drawn before the loop, for
            all steps at once. None: ``draw`` is given the key of its step as it is, and None where there is no key.

    Example, points (x, y) around a mean that the model puts out:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> def log_prob(mean, point):
        ...     return jax.scipy.stats.norm.logpdf(point, mean, 0.1).sum(-1)
        >>> def draw(key, mean):
        ...     point = mean + 0.1 * jax.random.normal(key, mean.shape)
        ...     return point, log_prob(mean, point)
        >>> around = jr.decoding.Sampler(draw, log_prob)
        >>> cell = jr.chain(jr.gru(2, 8), jr.readout(8, 2))
        >>> params = cell.init(jax.random.key(0))
        >>> walk = jr.generate(cell, params, None, jnp.zeros(2), steps=5, sample=around, key=jax.random.key(1))
        >>> walk.tokens.shape, bool(jnp.allclose(walk.log_probs, walk.sampler_log_probs))
        ((5, 2), True)
    """

    draw: Callable[[Any, PyTree], tuple[PyTree, jax.Array | None]]
    log_prob: Callable[[PyTree, PyTree], jax.Array] | None = None
    noise: Callable[[jax.Array, tuple[int, ...]], PyTree] | None = None


@checks_arguments
def greedy() -> Sampler:
    """The likeliest token, the first of those that are equally likely. It needs no key.

        token = argmax_v logits_v

    Returns:
        A :class:`Sampler` of tokens, from logits (*B, V).

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> jr.decoding.greedy().draw(None, jnp.array([0.1, 2.0, 0.3]))[0].item()
        1
    """

    def draw(noise, logits):
        logits = as_logits("greedy", logits)
        return logits.argmax(-1), jnp.zeros_like(logits, shape=logits.shape[:-1])

    return Sampler(draw, log_prob_of_token, _no_noise)


@checks_arguments
def temperature(temperature: float = 1.0) -> Sampler:
    """Every token may be drawn; a low temperature prefers the likelier ones.

        p(v) ∝ exp(logits_v / temperature)

    Args:
        temperature: a positive number, also a traced one, ().

    Returns:
        A :class:`Sampler` of tokens, from logits (*B, V).

    Raises:
        ValueError: a temperature that is not positive, where its value is known.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> logits = jnp.log(jnp.array([0.2, 0.8]))
        >>> sampler = jr.decoding.temperature(0.5)  # 0.2² and 0.8², over their sum
        >>> token, log_prob = sampler.draw(sampler.noise(jax.random.key(0), ()), logits)
        >>> token.item(), f"{jnp.exp(log_prob):.3f}"
        (1, '0.941')

    Reference:
        Ackley, Hinton & Sejnowski, "A learning algorithm for Boltzmann machines", Cognitive Science 9, 1985.
    """
    _check_temperature("temperature", temperature)

    def draw(u, logits):
        return _pick(u, _cooled("temperature", logits, temperature))

    return Sampler(draw, log_prob_of_token, _uniform)


@checks_arguments
def top_k(k: int | None = None, *, temperature: float = 1.0) -> Sampler:
    """One of the k likeliest tokens.

        p(v) ∝ exp(logits_v / temperature)   for the k largest logits, else 0

    Args:
        k: how many; of equal logits at the end of them the first count. None means 10, of a smaller vocabulary all.
        temperature: as for :func:`temperature`.

    Returns:
        A :class:`Sampler` of tokens, from logits (*B, V).

    Raises:
        ValueError: a temperature that is not positive; while tracing, k above V.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> sampler = jr.decoding.top_k(2)
        >>> u = sampler.noise(jax.random.key(0), (100,))
        >>> tokens, log_probs = sampler.draw(u, jnp.log(jnp.full((100, 4), jnp.array([0.1, 0.4, 0.3, 0.2]))))
        >>> sorted(set(tokens.tolist()))
        [1, 2]

    Reference:
        Fan, Lewis & Dauphin, "Hierarchical neural story generation", ACL 2018, with k = 10.
    """
    _check_temperature("top_k", temperature)

    def draw(u, logits):
        logits = _cooled("top_k", logits, temperature)
        V = logits.shape[-1]
        if k is not None and k > V:
            raise ValueError(
                f"top_k: k={k} is more than the vocabulary of {V} tokens; give a smaller k, or sample='temperature', "
                f"which draws from all of them."
            )
        return _pick_of(u, *jax.lax.top_k(logits, min(10, V) if k is None else k))

    return Sampler(draw, log_prob_of_token, _uniform)


@checks_arguments
def top_p(p: float = 0.95, *, temperature: float = 1.0) -> Sampler:
    """One of the fewest tokens that have the probability p together: the nucleus.

        p(v) ∝ exp(logits_v / temperature)   for the likeliest tokens up to that with which their sum reaches p, else 0

    Args:
        p: above 0, 1 at most, also a traced number, (). The likeliest token is always among them.
        temperature: as for :func:`temperature`; p counts probabilities after it.

    Returns:
        A :class:`Sampler` of tokens, from logits (*B, V).

    Raises:
        ValueError: p outside (0, 1] or a temperature that is not positive, where their values are known.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> sampler = jr.decoding.top_p(0.6)  # 0.4 is too little, 0.4 + 0.3 is enough
        >>> u = sampler.noise(jax.random.key(0), (100,))
        >>> tokens, log_probs = sampler.draw(u, jnp.log(jnp.full((100, 4), jnp.array([0.1, 0.4, 0.3, 0.2]))))
        >>> sorted(set(tokens.tolist()))
        [1, 2]

    Reference:
        Holtzman et al., "The curious case of neural text degeneration", ICLR 2020, with p = 0.95.
    """
    _check_temperature("top_p", temperature)
    if _is_known(p) and not 0 < float(p) <= 1:
        raise ValueError(f"top_p: p must be above 0 and at most 1, got {p!r}; p=1 draws from all tokens.")

    def draw(u, logits):
        logits = _cooled("top_p", logits, temperature)
        largest, tokens = jax.lax.top_k(logits, logits.shape[-1])
        probs = jax.nn.softmax(largest)
        before = jnp.cumsum(probs, axis=-1) - probs  # what the likelier ones have together
        kept = (before < jnp.asarray(p, probs.dtype)).at[..., 0].set(True)
        return _pick_of(u, jnp.where(kept, largest, -jnp.inf), tokens)

    return Sampler(draw, log_prob_of_token, _uniform)


NAMED: dict[str, Callable[[], Sampler]] = {
    "greedy": greedy,
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
}


def as_sampler(who: str, sample: Any, key: Any) -> Sampler:
    """What ``sample=`` means: a name, a Sampler, or a function ``(key, y) -> sample``; what is random has its key."""
    if isinstance(sample, Sampler):
        sampler = sample
    else:
        check_choice(who, "sample", sample, NAMED, or_function=True)
        sampler = NAMED[sample]() if isinstance(sample, str) else Sampler(lambda key, y: (sample(key, y), None))
    if key is None and sampler.noise not in (None, _no_noise):
        raise ValueError(
            f"{who}: drawing at random needs a key; give key=jax.random.key(0), say, or sample='greedy', which takes "
            f"the likeliest token."
        )
    return sampler


def draws_tokens(sampler: Sampler) -> bool:
    """Whether it is one of this file's."""
    return sampler.log_prob is log_prob_of_token


def noise_of(sampler: Sampler, key: jax.Array | None, times: jax.Array, batch_shape: tuple[int, ...]) -> PyTree:
    """What ``draw`` is given at each of these times, each leaf leading with them; None without a key."""
    if key is None or sampler.noise is _no_noise:
        return None
    keys = jax.vmap(lambda time: jax.random.fold_in(key, time))(times)
    noise = sampler.noise
    return keys if noise is None else jax.vmap(lambda key: noise(key, batch_shape))(keys)


def as_logits(who: str, y: PyTree) -> jax.Array:
    """An output that is logits (*B, V), in float32 at least."""
    is_array = hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.floating)
    if not is_array or not y.ndim or not y.shape[-1]:
        came = f"{y.dtype} of shape {y.shape}" if hasattr(y, "dtype") else type(y).__name__
        raise TypeError(
            f"{who}: tokens are drawn from logits, one array of floats (*B, V), but the cell's step puts out {came}; "
            f"end the cell with jr.readout(H, V), or give sample= a function of your own."
        )
    return y.astype(accumulator(y.dtype))


def log_prob_of_token(logits: PyTree, token: PyTree) -> jax.Array:
    """log softmax(logits)[token]; NaN for a token that is none of the V."""
    logits = as_logits("log_prob", logits)
    V, token = logits.shape[-1], token.astype(promoted(token.dtype, jnp.int32))  # int8 cannot be compared with 200
    inside = (token >= 0) & (token < V)
    chosen = jnp.take_along_axis(logits, jnp.where(inside, token, 0)[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return jnp.where(inside, chosen - jax.nn.logsumexp(logits, axis=-1), jnp.nan)


def _cooled(who: str, logits: PyTree, temperature: Any) -> jax.Array:
    logits = as_logits(who, logits)
    return logits / jnp.asarray(temperature, logits.dtype)


def _pick_of(u: jax.Array, values: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    place, log_prob = _pick(u, values)
    return jnp.take_along_axis(tokens, place[..., None], axis=-1)[..., 0], log_prob


def _pick(u: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``(place, log_prob)``: one of the last axis, p ∝ exp(values), where a uniform u falls among their sums.

    One number for each draw: ``jax.random.categorical`` takes one for each token, which at B = V = 64 costs a CPU
    as much as the step of an LSTM. The sums of blocks come first, then those within one, √V numbers each time.
    """
    n = values.shape[-1]
    size = math.isqrt(n - 1) + 1
    count = -(-n // size)
    p = jnp.exp(values - values.max(-1, keepdims=True))
    blocks = jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, count * size - n)]).reshape(*p.shape[:-1], count, size)
    sums = blocks.sum(-1)
    up_to = _sums(sums)
    target = u.astype(p.dtype) * up_to[..., -1]  # below the last sum, for u is below 1
    block = _place(up_to, target)
    within = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    before = jnp.take_along_axis(up_to - sums, block[..., None], axis=-1)[..., 0]
    place = block * size + _place(_sums(within), jnp.maximum(target - before, 0))  # rounding may leave less than 0
    place = jnp.minimum(place, n - 1)
    log_prob = jnp.take_along_axis(values, place[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(values, axis=-1)
    return place, log_prob


def _sums(p: jax.Array) -> jax.Array:
    """Of each place, the sum up to it: as a product, which is one operation."""
    triangle = jnp.triu(jnp.ones((p.shape[-1], p.shape[-1]), p.dtype))
    return jnp.matmul(p, triangle, precision="highest")


def _place(up_to: jax.Array, target: jax.Array) -> jax.Array:
    """The first place whose sum is above the target; where rounding leaves none, the last that adds to it."""
    found = (up_to <= target[..., None]).sum(-1)
    last = (up_to < up_to[..., -1:]).sum(-1)
    return jnp.minimum(found, last)


def _uniform(key: jax.Array, batch_shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, batch_shape)


def _no_noise(key: jax.Array, batch_shape: tuple[int, ...]) -> None:
    return None


def _is_known(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def _check_temperature(who: str, temperature: Any) -> None:
    if _is_known(temperature) and not float(temperature) > 0:
        raise ValueError(
            f"{who}: temperature must be above 0, got {temperature!r}; the limit at 0, the likeliest token, is "
            f"sample='greedy'."
        )
