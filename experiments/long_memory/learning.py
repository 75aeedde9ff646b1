"""The same training by the scan and in parallel, side by side: a block of steps by one, then the block by the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

import jaxrnn as jr
from experiments.flip_flop import data
from experiments.long_memory.networks import Network
from experiments.runner import config as configuration
from experiments.runner import training as rules
from experiments.runner.config import Many, Rate, Seed, Table
from jaxrnn import training

PyTree = Any
Run = Literal["scan", "parallel", "nudged"]


class Task(Table):
    channels: int = Field(default=3, gt=0)
    length: int = Field(default=4096, gt=0)  # T
    pulse_rate: float = Field(default=1 / 256, gt=0, le=1)  # at each step of each channel
    validation: int = Field(default=4, gt=0)  # sequences: the block whose parameters are kept is chosen on them
    test: int = Field(default=16, gt=0)  # sequences: read once, by the parameters that were kept
    held_out_seed: Seed = 2**31  # draws both; no seed of training


class Train(Table):
    blocks: int = Field(default=16, gt=0)
    block_steps: int = Field(default=50, gt=0)  # of one compiled call; validation after each
    batch_size: int = Field(default=1, gt=0)
    learning_rate: Rate = 1e-2  # of Adam; falls to 0 as a cosine
    clip_at: Rate = 1.0  # the largest global norm of a gradient
    seeds: Many[Seed] = (10, 11, 12)

    @property
    def steps(self) -> int:
        return self.blocks * self.block_steps


class Trained(NamedTuple):
    """One model, run one way; learn() stacks the seeds."""

    losses: np.ndarray  # (seeds, steps): of each training batch
    seconds: np.ndarray  # (seeds, blocks): without compilation
    validation: np.ndarray  # (seeds, blocks): mean squared error
    error: np.ndarray  # (seeds,): on the test sequences, of the parameters with the lowest validation error
    right: np.ndarray  # (seeds,): the share of the test bits that have the right sign
    params: PyTree  # each leaf (seeds, blocks + 1, …): before training and after each block


class Block(NamedTuple):
    """What was measured of a block of one seed."""

    losses: np.ndarray  # (block_steps,)
    seconds: float
    validation: float
    params: PyTree


class Learner(NamedTuple):
    """What trains one model one way."""

    init: Callable[[jax.Array], training.TrainState]
    block: Callable[[training.TrainState], tuple[training.TrainState, jax.Array]]  # -> the losses (block_steps,)


def held_out(task: Task) -> tuple[data.Runs, data.Runs]:
    """The validation and the test sequences."""
    keys = jax.random.split(jax.random.key(task.held_out_seed))
    validation, test = (
        data.draw(key, task.length, count, task.channels, task.pulse_rate)
        for key, count in zip(keys, (task.validation, task.test), strict=True)
    )
    return validation, test


def errors(model: jr.Layer, params: PyTree, runs: data.Runs) -> tuple[jax.Array, jax.Array]:
    """The mean squared error, and the share of bits that have the right sign."""
    answers = model.apply(params, runs.pulses)[1]
    return jnp.mean((answers - runs.memories) ** 2), jnp.mean(jnp.sign(answers) == runs.memories)


def learner(net: Network, task: Task, train: Train, rate: float) -> Learner:
    settings = configuration.Train(
        steps=train.steps, log_every=train.block_steps, learning_rate=rate, clip_at=train.clip_at
    )
    loop = training.loop(
        net.model.init,
        lambda params, batch, key: errors(net.model, params, batch)[0],
        rules.optimizer(settings),
    )

    def batch_at(key, number):
        key = jax.random.fold_in(key, number)
        return data.draw(key, task.length, train.batch_size, task.channels, task.pulse_rate)

    def block(state):
        state, measures = loop.run(state, batch_at, train.block_steps)
        return state, measures["loss"]

    init = jax.jit(loop.init)
    return Learner(init, jax.jit(block).lower(jax.eval_shape(init, jax.random.key(0))).compile())


def learn(task: Task, train: Train, nets: Mapping[Run, Network], rate: float) -> dict[Run, Trained]:
    """Train one model each way: the same seeds and batches, block by block in turn, so that all meet the same machine.

    The run "nudged" begins with each parameter a unit in the last place above the others': how far it comes to be
    from the scan is what rounding alone does. One seed after the other has the machine to itself: in an ensemble the
    seeds would share it, and meet other plans.

    Args:
        nets: the model, by runs.
        rate: the learning rate.
    """
    made = {key: learner(net, task, train, rate) for key, net in {id(net): net for net in nets.values()}.items()}
    learners = {run: made[id(net)] for run, net in nets.items()}  # runs of one network share its program
    validation, test = held_out(task)
    judge = next(iter(nets.values())).model  # the parameters of all runs are judged by the first
    judged = jax.jit(lambda params, runs: errors(judge, params, runs))

    def of_seed(seed: int) -> dict[Run, Trained]:
        states = {run: learner.init(jax.random.key(seed)) for run, learner in learners.items()}
        if "nudged" in states:
            states["nudged"] = states["nudged"]._replace(params=nudged(states["nudged"].params))
        best = {run: training.init_best(state.params) for run, state in states.items()}
        before = {run: state.params for run, state in states.items()}
        blocks: dict[Run, list[Block]] = {run: [] for run in nets}
        for number in range(train.blocks):
            for run in list(nets)[:: 1 if number % 2 else -1]:  # neither is always the first
                started = time.perf_counter()
                state, losses = jax.block_until_ready(learners[run].block(states[run]))
                seconds = time.perf_counter() - started
                error = judged(state.params, validation)[0]
                best[run] = training.update_best(best[run], error, state.step, state.params)
                blocks[run].append(Block(np.asarray(losses), seconds, float(error), jax.device_get(state.params)))
                states[run] = state
        return {run: finished(before[run], blocks[run], judged(best[run].params, test)) for run in nets}

    of_seeds = [of_seed(seed) for seed in train.seeds]
    return {run: jax.tree.map(lambda *leaves: np.stack(leaves), *(of[run] for of in of_seeds)) for run in nets}


def nudged(params: PyTree) -> PyTree:
    """Each number a unit in the last place further up."""
    return jax.tree.map(lambda a: jnp.nextafter(a, jnp.full_like(a, jnp.inf)), params)


def finished(before: PyTree, blocks: Sequence[Block], test: tuple[jax.Array, jax.Array]) -> Trained:
    """Of one seed."""
    error, right = test
    return Trained(
        losses=np.concatenate([block.losses for block in blocks]),
        seconds=np.array([block.seconds for block in blocks]),
        validation=np.array([block.validation for block in blocks]),
        error=np.asarray(error),
        right=np.asarray(right),
        params=jax.tree.map(lambda *leaves: np.stack(leaves), before, *(block.params for block in blocks)),
    )
