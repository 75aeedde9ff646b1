"""The networks: five recurrences in frames of about as many parameters, each run by the scan or in parallel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, get_args

import jax
from pydantic import Field

import jaxrnn as jr
from experiments.runner.config import Many, Rate, Table

PyTree = Any
Name = Literal["gru", "lstm", "min_gru", "lru", "s5"]
Way = Literal["scan", "parallel"]  # how time is run through
Method = Literal["auto", "chunks", "newton", "associative", "scan"]

CELLS: dict[Name, Callable[[int, int], jr.Cell]] = {
    # Tallec & Ollivier 2018, for lags that are short beside those of the task: what is longer has to be learned.
    "gru": lambda I, H: jr.gru(I, H, T_max=32),
    "lstm": lambda I, H: jr.lstm(I, H, T_max=32),
    "min_gru": jr.min_gru,
    # Orvieto et al. 2023: a ring near the unit circle and small phases, for long sequences.
    "lru": lambda I, H: jr.lru(I, H, r_min=0.9, r_max=0.9999, max_phase=math.pi / 10),
    "s5": jr.s5,
}
HIDDEN: dict[Name, int] = {"gru": 24, "lstm": 20, "min_gru": 18, "lru": 14, "s5": 18}  # about 2,100 parameters each
GATED = ("gru", "lstm")  # one layer is enough: what they keep and what they forget depends on their state


class Model(Table):
    cells: Many[Name] = get_args(Name)
    hidden_sizes: dict[Name, Annotated[int, Field(gt=0)]] = Field(default={})  # for a model that wants another
    layers: int = Field(default=2, gt=0)  # of the linear recurrences, a dense layer with GELU after each
    learning_rates: dict[Name, Rate] = Field(default={})  # for a model that wants another than train.learning_rate


class Parallel(Table):
    """``[parallel]``: the options of ``jr.parallel``."""

    method: Method = "auto"
    methods: dict[Name, Method] = Field(default={})  # for a model that wants another
    chunks: int = Field(default=0, ge=0)  # 0: as many as it finds right


class Network(NamedTuple):
    """A model, and where in it the recurrences are: ``members[n]`` for n in ``blocks`` begins with ``recurrence``."""

    model: jr.Layer
    members: tuple[jr.Cell | jr.Layer, ...]
    recurrence: jr.Layer
    blocks: tuple[int, ...]


def lifted(cell: jr.Cell, way: Way, **options: Any) -> jr.Layer:
    """The one place where it is decided how a cell runs over time."""
    return getattr(jr, way)(cell, **options)


def network(settings: Model, parallel: Parallel, name: Name, way: Way, channels: int) -> Network:
    """A recurrence that reads ``channels`` features, and a readout that answers with as many.

    gru, lstm:          x → recurrence → readout
    min_gru, lru, s5:   x → relu(dense) → ``layers`` times h + gelu(dense(recurrence(h))) → readout
    """
    H = settings.hidden_sizes.get(name, HIDDEN[name])
    options: dict[str, Any] = {}
    if way == "parallel":
        options["method"] = parallel.methods.get(name, parallel.method)
        if parallel.chunks:
            options["chunks"] = parallel.chunks
    recurrence = lifted(CELLS[name](channels if name in GATED else H, H), way, **options)
    if name in GATED:
        members: tuple[Any, ...] = (jr.stack(recurrence), jr.readout(H, channels))
        blocks: tuple[int, ...] = (0,)
    else:
        block = jr.residual(jr.stack(recurrence, jr.dense(H, H, activation="gelu")))
        first = jr.dense(channels, H, activation="relu")
        members = (first, *[block] * settings.layers, jr.readout(H, channels))
        blocks = tuple(range(1, 1 + settings.layers))
    return Network(jr.stack(*members), members, recurrence, blocks)


class Sweeps(NamedTuple):
    """What a run in parallel took, the recurrences of a network together."""

    method: str
    most: int  # sweeps over the sequence, of the recurrence that took the most
    fell_back: int  # how many chunks were run one after the other after all


def sweeps(net: Network, params: PyTree, xs: jax.Array) -> Sweeps:
    """Ask each recurrence of a network how it ran over what arrives at it."""
    reports = []
    for index, (member, own) in enumerate(zip(net.members, params, strict=True)):
        if index in net.blocks:
            reports.append(jr.convergence(net.recurrence, own[0], xs))
        xs = jr.stack(member).apply((own,), xs)[1]
    return Sweeps(
        ", ".join(dict.fromkeys(report.method for report in reports)),
        max(report.sweeps for report in reports),
        sum(report.fell_back for report in reports),
    )
