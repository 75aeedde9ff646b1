"""The networks: five recurrences in frames of about as many parameters, each run by the scan or in parallel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    "gru": lambda I, H: jr.gru(I, H, T_max=8),
    "lstm": lambda I, H: jr.lstm(I, H, T_max=8),
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
    max_iterations: int = Field(default=0, ge=0)  # 0: its default


class Network(NamedTuple):
    """A model, and what of it the table tells."""

    model: jr.Layer
    layers: int  # that are recurrences
    features: int


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
        options |= {o: n for o, n in (("chunks", parallel.chunks), ("max_iterations", parallel.max_iterations)) if n}
    if name in GATED:
        recurrence = lifted(CELLS[name](channels, H), way, **options)
        return Network(jr.stack(recurrence, jr.readout(H, channels)), 1, H)
    recurrence = lifted(CELLS[name](H, H), way, **options)
    block = jr.residual(jr.stack(recurrence, jr.dense(H, H, activation="gelu")))
    first, last = jr.dense(channels, H, activation="relu"), jr.readout(H, channels)
    return Network(jr.stack(first, *[block] * settings.layers, last), settings.layers, H)


class Asked(NamedTuple):
    """What one sequence takes in parallel, by parameters that get better."""

    sweeps: list[int]  # by chunks that are never left to the scan, until they agree; the recurrence that takes the most
    methods: list[str]  # by which it was run, at first and at last
    fell_back: list[int]  # chunks that were left to the scan, at first and at last


def ask(
    settings: Model, parallel: Parallel, name: Name, channels: int, params: Sequence[PyTree], xs: jax.Array
) -> Asked:
    """Ask ``jr.convergence`` about each parameter set; it compiles anew every time, which takes seconds."""
    patient = Parallel(method="chunks", chunks=parallel.chunks, max_iterations=len(xs))  # more than there are chunks
    model, of_training = (network(settings, p, name, "parallel", channels).model for p in (patient, parallel))
    ends = [jr.convergence(of_training, params[n], xs, repeats=None) for n in (0, -1)]
    return Asked(
        [jr.convergence(model, own, xs, repeats=None).sweeps for own in params],
        [report.method for report in ends],
        [report.fell_back for report in ends],
    )
