"""Memory in reinforcement learning: recurrent PPO on two tasks that no network without a memory can solve.

About 40 seconds on 2 CPU cores.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator
from rich.console import Console

import jaxrnn as jr
from experiments.environment import environment as machine
from experiments.memory_rl import environments, ppo
from experiments.memory_rl.ppo import PPO
from experiments.reports import figures
from experiments.runner import report
from experiments.runner.config import Many, Seed, Table

Task = Literal["t_maze", "repeat_previous"]
Network = Literal["gru", "memoryless"]


class TMaze(Table):
    length: int = Field(default=10, gt=0)  # steps from the cue to the junction
    discount: float = Field(default=0.97, gt=0, le=1)


class RepeatPrevious(Table):
    symbols: int = Field(default=4, gt=1)
    lag: int = Field(default=4, gt=0)
    length: int = Field(default=32, gt=0)  # of an episode
    discount: float = Field(default=0.5, gt=0, le=1)  # an answer changes nothing but its own reward

    @model_validator(mode="after")
    def there_is_something_to_answer(self) -> RepeatPrevious:
        if self.length <= self.lag:
            raise ValueError(f"expected a length above the lag ({self.lag}), got {self.length}")
        return self


class Config(Table):
    experiment: Literal["memory_rl"]
    tasks: Many[Task] = ("t_maze", "repeat_previous")
    networks: Many[Network] = ("gru", "memoryless")
    hidden_size: int = Field(default=48, gt=0)
    seeds: Many[Seed] = (0, 1, 2, 3, 4)
    episodes: int = Field(default=512, gt=0)  # of the evaluation
    t_maze: TMaze = TMaze()
    repeat_previous: RepeatPrevious = RepeatPrevious()
    ppo: PPO = PPO()


class Trained(NamedTuple):
    """One network on one task, over all seeds."""

    task: Task
    network: Network
    parameters: int
    evaluated: np.ndarray  # (seeds,): the mean return of fresh episodes, the most probable actions taken
    curve: np.ndarray  # (seeds, updates): the mean return of the episodes that ended in a rollout
    seconds: float


def run(config: Config, directory: Path) -> None:
    """Train every network on every task, and write down what they reach."""
    console = Console()
    everything = []
    started = time.process_time()
    for task in config.tasks:
        for network in config.networks:
            everything.append(trained := fit(config, task, network))
            each = " ".join(f"{value:.3f}" for value in trained.evaluated)
            console.print(f"{task}, {network}: return {each}; {trained.seconds:.0f} s", highlight=False)
    notes = notes_of(config, time.process_time() - started)
    report.write_table(directory, rows(config, everything), notes)
    summary = {"trained": [summarized(trained) for trained in everything], "environment": machine(report.PACKAGES)}
    (directory / "summary.json").write_text(report.to_json(summary, indent=2) + "\n", encoding="utf-8")
    figures.save(curves(config, everything), directory / "curves.png")
    console.print("\n".join([*notes, f"written to {directory}"]), highlight=False, soft_wrap=True)


def environment_of(config: Config, task: Task) -> environments.Environment:
    return getattr(environments, task)(**getattr(config, task).model_dump())


def fit(config: Config, task: Task, network: Network) -> Trained:
    environment = environment_of(config, task)
    policy = ppo.policy_of(environment, config.hidden_size, memory=network == "gru")

    def of_seed(key):
        params, curve = ppo.train(environment, policy, config.ppo, key)
        return ppo.evaluate(environment, policy, params, config.episodes, jax.random.fold_in(key, 1)), curve

    clock = report.Clock()
    keys = jnp.stack([jax.random.key(seed) for seed in config.seeds])
    evaluated, curve = (np.asarray(a) for a in jr.devices.ensemble(of_seed)(keys))
    shapes = jax.tree.leaves(jax.eval_shape(policy.init, keys[0]))
    return Trained(task, network, sum(a.size for a in shapes), evaluated, curve, clock.seconds())


def steps_of(config: Config) -> int:
    """Of all environments together, in one rollout."""
    return config.ppo.steps * config.ppo.environments


def rows(config: Config, everything: list[Trained]) -> list[tuple[str, ...]]:
    shown = report.Column("return", "return", ".3f").shown
    header = ("task", "network", "parameters", "return", "lowest seed", "chance", "steps", "seconds")
    body = [
        (
            trained.task,
            trained.network,
            f"{trained.parameters:,}",
            shown(trained.evaluated),
            f"{trained.evaluated.min():.3f}",
            f"{environment_of(config, trained.task).chance:.1f}",
            f"{config.ppo.updates * steps_of(config):,}",
            f"{trained.seconds:.0f}",
        )
        for trained in everything
    ]
    return [header, *body]


def notes_of(config: Config, processor_seconds: float) -> list[str]:
    return [
        f"Return: of {config.episodes} fresh episodes under the most probable actions, {report.spread(config.seeds)}; "
        f"with memory 1 can be reached in both tasks, and without it what stands under chance. Steps: of all "
        f"{config.ppo.environments} environments together, for each seed. Seconds: all seeds, compilation included; "
        f"all rows together took {processor_seconds:.0f} seconds of processor time."
    ]


def summarized(trained: Trained) -> dict[str, Any]:
    return {
        "task": trained.task,
        "network": trained.network,
        "parameters": trained.parameters,
        "returns": trained.evaluated.tolist(),
        "curve": trained.curve.tolist(),
        "seconds": trained.seconds,
    }


def curves(config: Config, everything: list[Trained]) -> Any:
    """The mean return of the episodes that ended, ten updates at a time."""
    panels: dict[str, dict[str, report.Curve]] = {}
    for trained in everything:
        width = min(10, config.ppo.updates)
        blocks = trained.curve[:, : config.ppo.updates // width * width].reshape(len(config.seeds), -1, width)
        steps = [width * steps_of(config) * (n + 1) for n in range(blocks.shape[1])]
        panels.setdefault(trained.task, {})[trained.network] = (steps, blocks.mean(-1))
    return report.draw(
        panels, len(config.seeds), title="Return while it learns", yscale="linear", baselines={"optimal": 1.0}
    )
