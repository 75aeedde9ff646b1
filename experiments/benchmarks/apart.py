"""The suites, measured one after the other; single steps in a process of their own.

JAX hands a program for the CPU to another thread, which takes longer than a small step. Whoever steps a model from
Python switches that off, for a whole process, before JAX has a device. All JAX contestants get the same.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import jax

from experiments.benchmarks import suites
from experiments.benchmarks.suites import Row, Settings

Measured = tuple[str, list[Row]]  # a group's title, and its rows


def measurements(settings: Settings) -> Iterator[Measured]:
    """Every group of the settings, measured."""
    for suite in settings.suites:
        if suite == "step":
            yield from _in_a_process_of_their_own(settings)
        else:
            for group in suites.SUITES[suite](settings):
                yield group.title, suites.measure(group)


def _in_a_process_of_their_own(settings: Settings) -> list[Measured]:
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(_steps, settings).result()


def _steps(settings: Settings) -> list[Measured]:
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_enable_compilation_cache", False)
    return [(group.title, suites.measure(group)) for group in suites.step(settings)]
