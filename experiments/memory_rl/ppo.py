"""Proximal policy optimisation of a recurrent policy: rollouts, the replay of their carries, updates.

Schulman et al., "Proximal policy optimization algorithms", 2017; generalised advantages: Schulman et al., ICLR 2016.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from pydantic import Field, model_validator

import jaxrnn as jr
from experiments.memory_rl.environments import Environment, restarting
from experiments.runner.config import Rate, Table


class PPO(Table):
    updates: int = Field(default=200, gt=0)
    environments: int = Field(default=32, gt=0)  # B, side by side
    steps: int = Field(default=32, gt=0)  # T, of a rollout
    epochs: int = Field(default=4, gt=0)  # passes over a rollout
    minibatches: int = Field(default=2, gt=0)  # of whole sequences, in each pass
    learning_rate: Rate = 5e-3  # falls to 0 in a line
    clip: Rate = 0.2  # of the ratio of probabilities
    trace: float = Field(default=0.9, ge=0, le=1)  # λ of the advantages
    value_weight: Rate = 0.5
    entropy_weight: float = Field(default=0.01, ge=0)
    clip_norm: Rate = 0.5  # of the gradient

    @model_validator(mode="after")
    def minibatches_hold_every_environment(self) -> PPO:
        if self.environments % self.minibatches:
            raise ValueError(
                f"expected a number of environments that {self.minibatches} minibatches divide, got {self.environments}"
            )
        return self


class Rollout(NamedTuple):
    """T steps of B environments; ``start`` is the policy's carry before the first, from which they can be replayed."""

    start: Any  # (B, …)
    observations: jax.Array  # (T, B, I)
    resets: jax.Array  # (T, B): the first step of an episode
    actions: jax.Array  # (T, B)
    log_probs: jax.Array  # (T, B), of the actions
    values: jax.Array  # (T, B)
    rewards: jax.Array  # (T, B)
    dones: jax.Array  # (T, B): the last step of an episode


class Actors(NamedTuple):
    """Where the environments stand between two rollouts."""

    state: Any
    observation: jax.Array  # (B, I)
    resets: jax.Array  # (B): whether the observation is the first of an episode
    carry: Any  # of the policy
    episode_return: jax.Array  # (B), so far


def policy_of(environment: Environment, hidden_size: int, *, memory: bool = True) -> jr.Cell:
    """An actor and a critic on one GRU, or on one dense layer, which remembers nothing: ``(logits, (value,))``."""
    I, H = environment.observation_size, hidden_size
    body = jr.gru(I, H) if memory else jr.dense(I, H, activation="tanh")
    actor = jr.readout(H, environment.actions, kernel_init=jax.nn.initializers.normal(0.01))
    return jr.chain(body, jr.branch(actor, jr.readout(H, 1)))


def start(environment: Environment, policy: jr.Cell, params: Any, count: int, key: jax.Array) -> Actors:
    state, observation = jax.vmap(environment.reset)(jax.random.split(key, count))
    carry = policy.initial_carry(params, (count,))
    return Actors(state, observation, jnp.ones(count, bool), carry, jnp.zeros(count))


def log_prob(logits: jax.Array, actions: jax.Array) -> jax.Array:
    """Of each action, from logits (…, A)."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), actions[..., None], axis=-1)[..., 0]


def collect(environment: Environment, policy: jr.Cell, params: Any, actors: Actors, steps: int, key: jax.Array):
    """``(actors, rollout, returns)``: ``returns`` (T, B) of the episodes that end at a step, NaN elsewhere."""
    act, play = jr.stream(policy), jax.vmap(restarting(environment).step)
    B = actors.observation.shape[0]

    def step(actors, key):
        k_action, k_step = jax.random.split(key)
        carry, (logits, value) = act.step(params, actors.carry, actors.observation, resets=actors.resets)
        action = jax.random.categorical(k_action, logits)
        state, observation, reward, done = play(actors.state, action, jax.random.split(k_step, B))
        total = actors.episode_return + reward
        saw = (actors.observation, actors.resets, action, log_prob(logits, action), value[..., 0], reward, done)
        after = Actors(state, observation, done, carry, jnp.where(done, 0.0, total))
        return after, (saw, jnp.where(done, total, jnp.nan))

    after, (saw, returns) = jax.lax.scan(step, actors, jax.random.split(key, steps))
    return after, Rollout(actors.carry, *saw), returns


def replay(policy: jr.Cell, params: Any, rollout: Rollout, *, plan: Any = "auto") -> tuple[jax.Array, jax.Array]:
    """``(logits, values)`` of the rollout, from the carry that it started with."""
    layer = jr.scan(policy, plan=plan)
    _, (logits, value) = layer.apply(params, rollout.observations, rollout.start, resets=rollout.resets)
    return logits, value[..., 0]


def of_members(rollout: Rollout, members: jax.Array) -> Rollout:
    """The rollout of some of the environments, whole sequences with the carries that they started with."""
    over_time = {name: getattr(rollout, name)[:, members] for name in Rollout._fields if name != "start"}
    return Rollout(start=jax.tree.map(lambda a: a[members], rollout.start), **over_time)


def advantages(rollout: Rollout, next_value: jax.Array, discount: float, trace: float) -> jax.Array:
    """(T, B): what was gained beyond the values, discounted. ``next_value`` (B) is that of the step after the last.

    A_t = δ_t + γλ A_{t+1},  δ_t = r_t + γ V_{t+1} - V_t,  where both V_{t+1} and A_{t+1} are 0 after an episode's end.
    """
    following = jnp.concatenate([rollout.values[1:], next_value[None]])
    goes_on = discount * (1 - rollout.dones)
    delta = rollout.rewards + goes_on * following - rollout.values

    def back(advantage, step):
        delta, goes_on = step
        advantage = delta + trace * goes_on * advantage
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(next_value), (delta, goes_on), reverse=True)[1]


def loss(policy: jr.Cell, params: Any, rollout: Rollout, gains: jax.Array, targets: jax.Array, settings: PPO):
    logits, values = replay(policy, params, rollout)
    ratio = jnp.exp(log_prob(logits, rollout.actions) - rollout.log_probs)
    gains = (gains - gains.mean()) / (gains.std() + 1e-8)
    clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
    chosen = jnp.minimum(ratio * gains, clipped * gains).mean()
    entropy = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1).mean()
    error = jnp.square(values - targets).mean()
    return -chosen + settings.value_weight * error - settings.entropy_weight * entropy


def train(environment: Environment, policy: jr.Cell, settings: PPO, key: jax.Array) -> tuple[Any, jax.Array]:
    """``(params, returns)``: ``returns`` (updates,), the mean over the episodes that end in a rollout, NaN for none."""
    k_init, k_start, k_updates = jax.random.split(key, 3)
    count = settings.updates * settings.epochs * settings.minibatches
    optimizer = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adam(optax.linear_schedule(settings.learning_rate, 0.0, count), eps=1e-5),
    )
    params = policy.init(k_init)
    B, act = settings.environments, jr.stream(policy)
    in_minibatch = B // settings.minibatches

    def on_minibatch(rollout, gains, carry, members):
        params, state = carry
        part = of_members(rollout, members)
        of_part = gains[:, members]
        gradient = jax.grad(lambda p: loss(policy, p, part, of_part, of_part + part.values, settings))(params)
        change, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, change), state), None

    def update(carry, key):
        params, state, actors = carry
        k_rollout, k_order = jax.random.split(key)
        actors, rollout, returns = collect(environment, policy, params, actors, settings.steps, k_rollout)
        _, (_, value) = act.step(params, actors.carry, actors.observation, resets=actors.resets)
        gains = advantages(rollout, value[..., 0], environment.discount, settings.trace)
        orders = jax.vmap(lambda k: jax.random.permutation(k, B))(jax.random.split(k_order, settings.epochs))
        members = orders[:, : in_minibatch * settings.minibatches].reshape(-1, in_minibatch)
        (params, state), _ = jax.lax.scan(functools.partial(on_minibatch, rollout, gains), (params, state), members)
        return (params, state, actors), jnp.nanmean(returns)

    actors = start(environment, policy, params, B, k_start)
    (params, _, _), returns = jax.lax.scan(
        update, (params, optimizer.init(params), actors), jax.random.split(k_updates, settings.updates)
    )
    return params, returns


def evaluate(environment: Environment, policy: jr.Cell, params: Any, episodes: int, key: jax.Array) -> jax.Array:
    """The mean return of whole episodes under the most probable actions."""
    act, k_reset = jr.stream(policy), jax.random.fold_in(key, 0)
    state, observation = jax.vmap(environment.reset)(jax.random.split(k_reset, episodes))
    carry = act.initial_carry(params, (episodes,))

    def step(now, key):
        state, observation, carry, over = now
        carry, (logits, _) = act.step(params, carry, observation)
        keys = jax.random.split(key, episodes)
        state, observation, reward, done = jax.vmap(environment.step)(state, logits.argmax(-1), keys)
        return (state, observation, carry, over | done), jnp.where(over, 0.0, reward)

    keys = jax.random.split(jax.random.fold_in(key, 1), environment.longest)
    over = jnp.zeros(episodes, bool)
    return jax.lax.scan(step, (state, observation, carry, over), keys)[1].sum(0).mean()
