"""Who takes part, in the order of the tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import jaxrnn as jr
from experiments.benchmarks import ours, peers, pytorch
from experiments.benchmarks.problems import Problem
from experiments.benchmarks.programs import Model, Program, Stepper, Traced


class Contestant(NamedTuple):
    """``model`` is what every JAX row of a sequence comes from; torch and the floor have a program of their own,
    ``sequence``. Who has neither takes part in single steps alone."""

    name: str
    needs: str | None = None  # the module, where it is not jaxrnn's own dependency
    model: Callable[[Problem], Model] | None = None
    step: Callable[[Problem], Stepper | Program] | None = None
    sequence: Callable[[Problem, str], Traced | Program] | None = None
    cells: tuple[str, ...] = ("elman", "lstm", "gru")  # of others the table need not say that they are missing
    gpu: bool = False  # takes part on a GPU alone

    def installed(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


PLAN = "jaxrnn"
PLAIN = "jaxrnn plain"
STREAM = "jaxrnn stream"
TEXTBOOK = "textbook"
BEFORE = "reset before"
CHECKPOINT = "jaxrnn checkpoint"
PACKED = "jaxrnn packed"
TORCH = "torch"
CUDNN = "cudnn"
FLOORS = ("floor", "floor torch")

JAX_PEERS = (
    Contestant("flax linen", "flax", peers.linen, peers.linen_step),
    Contestant("flax nnx", "flax", peers.nnx_model, peers.nnx_step),
    Contestant("haiku", "haiku", peers.haiku, peers.haiku_step),
    Contestant("equinox", "equinox", peers.equinox, peers.equinox_step),
    Contestant("keras", "keras", peers.keras, peers.keras_step),
)
CONTESTANTS = (
    Contestant(PLAN, None, ours.model(), ours.stepper()),
    Contestant(PLAIN, None, ours.model(plan="plain")),
    Contestant(STREAM, None, step=ours.stepper(served=True)),
    Contestant(TEXTBOOK, None, ours.model(ours.textbook_lstm), ours.stepper(ours.textbook_lstm), cells=("lstm",)),
    Contestant(BEFORE, None, ours.model(ours.gru_reset_before), ours.stepper(ours.gru_reset_before), cells=("gru",)),
    Contestant(TORCH, "torch", step=pytorch.step, sequence=pytorch.sequence),
    *JAX_PEERS,
    Contestant(CUDNN, None, peers.cudnn, cells=("lstm",), gpu=True),
    Contestant(FLOORS[0], None, sequence=ours.floor),
    Contestant(FLOORS[1], "torch", sequence=pytorch.floor),
)
SHARING = Contestant(PACKED, None, ours.model(plan=jr.Plan(pack=True)))
CHECKPOINTED = Contestant(CHECKPOINT, None, ours.model(checkpoint=True), cells=("lstm",))
BY_NAME = {contestant.name: contestant for contestant in (*CONTESTANTS, SHARING, CHECKPOINTED)}
PEER_NAMES = tuple(contestant.name for contestant in JAX_PEERS)
