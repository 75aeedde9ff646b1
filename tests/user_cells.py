"""Cells that the library does not ship, written from README alone: three functions each."""

import jax
import jax.numpy as jnp

import jaxrnn as jr


def clockwork(input_size, hidden_size, period=3):
    """A slow network that moves every ``period`` steps; an integer clock in its carry, a ``lax.cond`` in its step."""

    def init(key):
        k_x, k_h = jax.random.split(key)
        return {
            "W_xh": jax.random.normal(k_x, (input_size, hidden_size)) * 0.3,
            "W_hh": jax.random.normal(k_h, (hidden_size, hidden_size)) * 0.3,
            "gain": jnp.asarray(0.5),
        }

    def initial_carry(params, batch_shape=()):
        h = jnp.zeros((*batch_shape, hidden_size), params["W_hh"].dtype)
        return {"h": h, "clock": jnp.zeros(batch_shape, jnp.int32)}

    def step(params, carry, x):
        a = x @ params["W_xh"] + carry["h"] @ params["W_hh"]
        new = jax.lax.cond(params["gain"] > 0, lambda a: jnp.tanh(params["gain"] * a), jnp.sin, a)
        moves = (carry["clock"] % period == 0)[..., None]
        h = jnp.where(moves, new, carry["h"])
        return {"h": h, "clock": carry["clock"] + 1}, h

    return jr.Cell(init, initial_carry, step)


def fast_weights(input_size, hidden_size):
    """Linear attention as a recurrence: the carry is a matrix, the input a projection into key, value and query."""

    def init(key):
        W = jax.random.normal(key, (input_size, 3 * hidden_size)) * 0.5
        return {"W": W, "decay": jnp.full((hidden_size,), 0.8)}

    def initial_carry(params, batch_shape=()):
        return jnp.zeros((*batch_shape, hidden_size, hidden_size), params["W"].dtype)

    @jax.jit  # a nested jit in the step
    def step(params, S, x):
        k, v, q = jnp.split(x @ params["W"], 3, axis=-1)
        decay = jax.lax.broadcast_to_rank(params["decay"], S.ndim)  # as jax.numpy_rank_promotion("raise") wants it
        S = decay * S + k[..., :, None] * v[..., None, :]
        return S, jnp.einsum("...kv,...k->...v", S, q)

    return jr.Cell(init, initial_carry, step)


def textbook_lstm(input_size, hidden_size):
    """The equations as they are printed: eight products, four biases."""

    def init(key):
        shapes = {"W": (input_size, hidden_size), "U": (hidden_size, hidden_size), "b": (hidden_size,)}
        keys = iter(jax.random.split(key, 12))
        return {gate: {n: 0.3 * jax.random.normal(next(keys), s) for n, s in shapes.items()} for gate in "ifgo"}

    def initial_carry(params, batch_shape=()):
        zero = jnp.zeros((*batch_shape, hidden_size), params["i"]["U"].dtype)
        return zero, zero

    def step(params, carry, x):
        h, c = carry
        a = {gate: x @ p["W"] + h @ p["U"] + jax.lax.broadcast_to_rank(p["b"], h.ndim) for gate, p in params.items()}
        i, f, o = (jax.nn.sigmoid(a[gate]) for gate in "ifo")
        c = f * c + i * jnp.tanh(a["g"])
        h = o * jnp.tanh(c)
        return (h, c), h

    return jr.Cell(init, initial_carry, step)


def linear(W):
    """h_t = W h_{t-1}, no inputs."""

    def step(params, h, x):
        h = h @ params["W"].T
        return h, h

    return jr.Cell(
        lambda key: {"W": jnp.asarray(W)},
        lambda params, batch_shape=(): jnp.ones((*batch_shape, len(W)), params["W"].dtype),
        step,
    )


def autonomous(start, F):
    """A map h_t = F(h_{t-1}) as a user writes it: three functions."""
    start = jnp.asarray(start)
    return jr.Cell(
        lambda key: {},
        lambda params, batch_shape=(): jnp.broadcast_to(start, (*batch_shape, *start.shape)),
        lambda params, h, x: (F(h), F(h)),
    )
