"""Which units of a network are connected, with which sign, and how strongly at first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

SQUARINGS = 18  # the radius is good to log(κ) / 2^18, κ the condition of the eigenvectors: 4e-5 at κ = 1e4


def check_positive(who: str, **values: Any) -> None:
    """Each number is above 0."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{who}: {name} must be above 0, got {value!r}.")


def check_not_negative(who: str, **values: Any) -> None:
    """Each number is 0 or above."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{who}: {name} must be 0 or above, got {value!r}.")


def per_feature(
    who: str, name: str, value: ArrayLike | Sequence[float], size: int, *, zero: bool = False
) -> np.ndarray:
    """(size,) or (): a number for all, or one for each, finite and above 0 (with ``zero`` 0 or above)."""
    try:
        numbers = np.asarray(value)
    except (TypeError, ValueError):  # lists of unequal lengths, traced values
        numbers = np.asarray(None)
    if numbers.dtype.kind not in "iuf" or numbers.shape not in ((), (size,)):
        came = f"an array {numbers.shape}" if numbers.ndim else repr(value)
        raise TypeError(f"{who}: {name} must be a number or {size} of them, one for each, got {came}.")
    if not (np.isfinite(numbers) & ((numbers >= 0) if zero else (numbers > 0))).all():
        raise ValueError(f"{who}: {name} must be finite and {'0 or above' if zero else 'above 0'}, got {value!r}.")
    return numbers.astype(np.float64)


def in_degree(who: str, density: float, senders: int) -> int:
    """How many of the senders each unit hears: at least one, so that there is a cycle, and a spectral radius."""
    if not 0 < density <= 1:
        raise ValueError(f"{who}: density must be above 0 and at most 1, got {density!r}; 1 connects every pair.")
    return max(1, round(density * senders))


def lowest(numbers: Any, count: int) -> Any:
    """Which numbers of each column are among its ``count`` lowest: booleans, of NumPy or JAX as the numbers are."""
    return numbers.argsort(axis=0).argsort(axis=0) < count


def dale_signs(who: str, fraction: float | None, size: int) -> np.ndarray | None:
    """(size, 1): +1 of the units that excite, which come first, -1 of those that inhibit; None without Dale's law."""
    if fraction is None:
        return None
    excitatory = round(fraction * size)
    if not 0 < fraction < 1 or not 0 < excitatory < size:
        raise ValueError(
            f"{who}: dale must be the fraction of units that excite, with at least one of each sign, got {fraction!r}, "
            f"which makes {excitatory} of {size}; give 0.8 with 5 units or more, or None for weights of any sign."
        )
    return np.where(np.arange(size) < excitatory, 1.0, -1.0)[:, None]


def connections_of(
    who: str, size: int, density: float, seed: int, connections: Any, self_connections: bool
) -> np.ndarray | None:
    """(size, size) booleans, [from, to]: those given, or ``density`` of all; None where all units are connected."""
    if connections is not None:
        if density != 1.0:
            raise ValueError(f"{who}: connections and density={density!r} both say who is connected; give one of them.")
        mask = np.array(connections)
        if mask.dtype != np.bool_ or mask.shape != (size, size):
            raise ValueError(
                f"{who}: connections must be booleans ({size}, {size}), from and to, got {mask.dtype} of shape "
                f"{mask.shape}; use connections.astype(bool)."
            )
    elif density == 1.0:
        mask = np.ones((size, size), bool)
    else:
        # RandomState's stream is fixed for all time, as a model's connections have to be once it is in a file.
        drawn = np.random.RandomState(seed % 2**32).random_sample((size, size))
        if not self_connections and size > 1:
            np.fill_diagonal(drawn, 2.0)  # above all others
        mask = lowest(drawn, in_degree(who, density, size - (not self_connections)))
    if not self_connections:
        np.fill_diagonal(mask, False)
    return None if mask.all() else mask


def wired(W: jax.Array, signs: np.ndarray | None, mask: np.ndarray | None) -> jax.Array:
    """Weights (H, H) by signs and connections: 0 where there is none, |W| with the sender's sign."""
    if signs is not None:
        W = jnp.abs(W) * jnp.asarray(signs, W.dtype)
    return W if mask is None else jnp.where(mask, W, jnp.zeros((), W.dtype))


def balanced(W: jax.Array) -> jax.Array:
    """Weights (from, to) whose negative ones are scaled, unit by unit, to sum to what the positive ones do.

    Excitation that outweighs inhibition is an eigenvalue far outside of the others.
    """
    excitation, inhibition = (jnp.maximum(sign * W, 0).sum(0, keepdims=True) for sign in (1, -1))
    both = (excitation > 0) & (inhibition > 0)
    return jnp.where(W < 0, W * jnp.where(both, excitation / jnp.where(both, inhibition, 1), 1), W)


def with_radius(W: jax.Array, radius: float | None) -> jax.Array:
    """Weights scaled to a spectral radius; as they are where it is None, or where all their eigenvalues are 0."""
    if radius is None:
        return W
    log_radius = log_spectral_radius(W)
    found = jnp.isfinite(log_radius)
    return W * jnp.where(found, radius * jnp.exp(-jnp.where(found, log_radius, 0)), 1)


def log_spectral_radius(W: jax.Array) -> jax.Array:
    """log ρ(W) of floats (H, H), -inf for a nilpotent matrix: Gelfand's ρ = lim ‖Wⁿ‖^(1/n), n = 2^SQUARINGS.

    By squaring again and again, and no eigenvalues, which JAX has for no GPU. Rounding counts for less with every
    squaring, so float32 is enough; it underflows where an eigenvalue lacks more than two of its eigenvectors, which
    those of random matrices do not.
    """

    def square(power, n):
        size = jnp.abs(power).max()
        power = power / jnp.where(size > 0, size, 1)
        return jnp.matmul(power, power, precision="highest"), jnp.log(size) * 2.0**-n

    size = jnp.abs(W).max()
    power = (W / jnp.where(size > 0, size, 1)).astype(jnp.float32)
    _, logs = jax.lax.scan(square, power, jnp.arange(SQUARINGS + 1, dtype=jnp.float32))
    return jnp.log(size) + logs.sum().astype(W.dtype)
