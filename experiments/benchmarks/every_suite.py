"""Every suite by its name, and all of them measured, one after the other; single steps in a process of their own.

JAX hands a program for the CPU to another thread, which takes longer than a small step. Whoever steps a model from
Python switches that off, for a whole process, before JAX has a device. All JAX contestants get the same.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import jax

from experiments.benchmarks import suites
from experiments.benchmarks.closed_loop import closed_loop
from experiments.benchmarks.measuring import measure
from experiments.benchmarks.online_steps import online
from experiments.benchmarks.suites import Group, Row, Settings
from jaxrnn.commands.other_work import OtherWork

SUITES: dict[str, Callable[[Settings], Iterator[Group]]] = {
    "cells": suites.cells,
    "variants": suites.variants,
    "ragged": suites.ragged,
    "small": suites.small,
    "ensemble": suites.ensemble,
    "step": suites.step,
    "length": suites.length,
    "memory": suites.memory,
    "compile": suites.compile_time,
    "closed_loop": closed_loop,
    "online": online,
}


class Measured(NamedTuple):
    title: str  # of a group
    rows: list[Row]
    other_work: float  # cores that other processes kept busy meanwhile


def measurements(settings: Settings) -> Iterator[Measured]:
    """Every group of the settings, measured."""
    for suite in settings.suites or SUITES:
        if suite == "step":
            yield from _in_a_process_of_their_own(settings)
        else:
            yield from map(_measured, SUITES[suite](settings))


def _in_a_process_of_their_own(settings: Settings) -> list[Measured]:
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(_steps, settings).result()


def _steps(settings: Settings) -> list[Measured]:
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_enable_compilation_cache", False)
    return [_measured(group) for group in suites.step(settings)]


def _measured(group: Group) -> Measured:
    other_work = OtherWork()
    return Measured(group.title, measure(group), other_work.cores() or 0.0)
