"""Two environments in which what is seen now is not enough: pure functions of keys and states, one episode each.

Both give 1 in all to who remembers, and ``chance`` to the best that can be done without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Environment(NamedTuple):
    """``reset(key) -> (state, observation)``; ``step(state, action, key) -> (state, observation, reward, done)``."""

    reset: Callable[[jax.Array], tuple[Any, jax.Array]]
    step: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array, jax.Array, jax.Array]]
    observation_size: int
    actions: int
    longest: int  # steps of an episode
    discount: float  # of what comes later, as the learner is to count it
    chance: float  # the best mean return without memory; with it, it is 1


class InMaze(NamedTuple):
    position: jax.Array  # (), 0 … length; at length there is the junction
    cue: jax.Array  # (), 1 or -1: up or down is right
    time: jax.Array


def t_maze(length: int, discount: float) -> Environment:
    """A corridor of ``length`` steps to a junction. The way to turn there is shown at the entrance alone.

    Bakker, "Reinforcement learning with long short-term memory", NIPS 2001. Here a turn at the junction ends the
    episode with 1 or -1, an action that leads nowhere costs 0.1, and after twice the steps that are needed all is over.
    """

    def observe(s: InMaze) -> jax.Array:
        at_start, at_junction = s.position == 0, s.position == length
        return jnp.stack([jnp.where(at_start, s.cue, 0), at_junction, ~(at_start | at_junction)]).astype(jnp.float32)

    def reset(key):
        zero = jnp.int32(0)
        state = InMaze(zero, jax.random.choice(key, jnp.array([-1, 1], jnp.int32)), zero)
        return state, observe(state)

    def step(s, action, key):  # 0 goes on, 1 turns up, 2 turns down
        at_junction, goes_on = s.position == length, action == 0
        turned = at_junction & ~goes_on
        right = s.cue == jnp.where(action == 1, 1, -1)
        reward = jnp.where(turned, jnp.where(right, 1.0, -1.0), jnp.where(at_junction == goes_on, -0.1, 0.0))
        moved = InMaze(s.position + (goes_on & ~at_junction), s.cue, s.time + 1)
        return moved, observe(moved), reward, turned | (moved.time == 2 * (length + 1))

    return Environment(reset, step, 3, 3, longest=2 * (length + 1), discount=discount, chance=0.0)


class InDeck(NamedTuple):
    seen: jax.Array  # (lag + 1,) symbols, the newest first
    time: jax.Array


def repeat_previous(symbols: int, lag: int, length: int, discount: float) -> Environment:
    """A symbol at each step; from step ``lag`` on the one of ``lag`` steps ago is to be named, all rewards alike.

    Morad et al., "POPGym: benchmarking partially observable reinforcement learning", ICLR 2023.
    """

    def observe(s: InDeck) -> jax.Array:
        return jax.nn.one_hot(s.seen[0], symbols)

    def reset(key):
        state = InDeck(jnp.zeros(lag + 1, jnp.int32).at[0].set(jax.random.randint(key, (), 0, symbols)), jnp.int32(0))
        return state, observe(state)

    def step(s, action, key):
        reward = jnp.where(action == s.seen[lag], 1.0, -1.0) / (length - lag)
        drawn = jax.random.randint(key, (1,), 0, symbols)
        new = InDeck(jnp.concatenate([drawn, s.seen[:-1]]), s.time + 1)
        return new, observe(new), jnp.where(s.time < lag, 0.0, reward), new.time == length

    return Environment(reset, step, symbols, symbols, longest=length, discount=discount, chance=2 / symbols - 1)


def restarting(environment: Environment) -> Environment:
    """The same, with a new episode where one is done: the observation returned is its first."""

    def step(state, action, key):
        k_step, k_reset = jax.random.split(key)
        state, observation, reward, done = environment.step(state, action, k_step)
        fresh = environment.reset(k_reset)
        state, observation = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, (state, observation))
        return state, observation, reward, done

    return environment._replace(step=step)
