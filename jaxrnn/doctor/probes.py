"""Faults of compilers that are known, most by number: which of them this machine has, each seen by a small program."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.devices.meshes import hangs_with_few_threads


class Probe(NamedTuple):
    """What was found out about one fault."""

    issue: str
    fault: str  # what goes wrong where it is present
    verdict: str  # one of VERDICTS
    because: str  # what the verdict stands on
    measured: Mapping[str, float] = {}  # seconds, ratios, differences
    fix: str = ""  # what to do, where it is present


VERDICTS = ("absent", "present", "not run", "not measured")

WRONG_VALUES = "wrong values on the CPU, as in float64 gradients of a GRU"
CRASHES = "crashes or hangs on the CPU"
# Of the loops that XLA's CPU compiler makes one kernel, in jaxlib 0.11.1 alone (0.10.1, 0.11.0, 0.11.2 and 0.12.0.1 are
# sound). What a step stacks is no measure of it: the thread names 256 bytes on one machine and 480 on another, and here
# scans of a product and a sum had it up to 160 bytes a step, and no longer with 192.
QUADRATIC = "a loop that becomes one kernel, as with a small step, writes all that it has stacked at every step"
# Seen in every release that was tried, 0.10.1 to 0.12.0.1. The loops of jaxrnn update no array by a part of itself.
READS_WHAT_IT_WROTE = "an array updated by a part of itself, as a.at[1:].set(a[:-1]), can read what it has just written"
CRASHING = ("0.10.2", "0.11.0")  # releases of jaxlib
HANGS = "CPU devices that share a batch can wait for each other for good, where there are fewer than 2 threads for each"

# All were tried where the fault is present: the first on 0.10.2 and 0.11.0 with the program of the thread, which dies
# without it (it does not cure #39103); the second on 0.11.1 with the scans below.
NO_YNN_FUSION = "XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type="
NO_MOVED_RESHAPES = "XLA_FLAGS=--xla_disable_hlo_passes=algsimp"  # on 0.10.1, 0.11.1, 0.11.2, 0.12.0, 0.12.0.1
NO_KERNELS_OF_LOOPS = "XLA_FLAGS=--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=0"

STEPS = 10_000
FACTOR = 4  # by which the longer scan is longer
# Four times as many steps take 2.9 to 3.9 times as long where the fault is absent (jaxlib 0.10.1 and 0.12.0), and 16
# times where it is present (0.11.1): halfway between, as factors go.
QUADRATIC_FROM = 8.0


def probe_wrong_values(difference: float, tolerance: float, error: str = "") -> Probe:
    """From the gradient of the GRU that jaxlib 0.10.2 gets wrong: its largest relative difference from a plain loop.

    Where an error came in its place, it says nothing about this fault.
    """
    if error:
        return Probe("jax-ml/jax#39103", WRONG_VALUES, "not measured", error)
    off = not difference <= tolerance  # as NaN is
    return Probe(
        "jax-ml/jax#39103",
        WRONG_VALUES,
        "present" if off else "absent",
        f"the gradient of that GRU is {difference:.1e} off, {tolerance:.0e} is allowed",
        {"difference": difference, "tolerance": tolerance},
        _another_than("0.10.2") if off else "",
    )


def probe_crashes(jaxlib: str | None) -> Probe:
    """By the release alone: a program that crashes would take the report with it."""
    release = (jaxlib or "").partition("+")[0]
    affected = release in CRASHING
    return Probe(
        "jax-ml/jax#39257",
        CRASHES,
        "present" if affected else "not run",
        f"jaxlib {jaxlib or 'is not known'}: " + ("one of" if affected else "none of") + f" {', '.join(CRASHING)}, "
        f"which have it; no program is run that could crash",
        {},
        f"{_another_than(*CRASHING)}; until then {NO_YNN_FUSION} (with nothing after the =)" if affected else "",
    )


def probe_hangs(jaxlib: str | None) -> Probe:
    """By the release alone: a program that hangs would take the report with it."""
    if not jaxlib:
        return Probe("unnumbered", HANGS, "not measured", "jaxlib is not known")
    affected = hangs_with_few_threads(jaxlib)
    return Probe(
        "unnumbered",
        HANGS,
        "present" if affected else "not run",
        f"seen in 0.10.1, not in 0.12.0.1, and this is {jaxlib}; no program is run that could hang",
        {},
        "jr.devices.use_cpu_devices(n) asks for 2n threads; by hand PJRT_NPROC=2n, before JAX starts"
        if affected
        else "",
    )


def probe_updates_in_place(update: Callable[[jax.Array], jax.Array] | None = None) -> Probe:
    """By the program of the thread, 1 2 3 4 with its first three moved on by one; ``update`` runs in its place."""
    start = jnp.arange(4, dtype=jnp.int32).reshape(4, 1, 1)
    issue, want = "openxla/xla#49176", [1, 1, 2, 3]
    try:
        got = jnp.ravel((update or jax.jit(_moved_on))(start)).tolist()
    except Exception as error:  # a compiler can fail in any way; the rest of the report still says something
        return Probe(issue, READS_WHAT_IT_WROTE, "not measured", _first_line(error))
    present = got != want
    return Probe(
        issue,
        READS_WHAT_IT_WROTE,
        "present" if present else "absent",
        f"1 2 3 4, updated by its first three from the second place on, is {' '.join(map(str, got))}",
        {},
        f"build the array anew, with jnp.concatenate or jnp.where; or {NO_MOVED_RESHAPES}, which is slower"
        if present
        else "",
    )


def _moved_on(a: jax.Array) -> jax.Array:
    a = a + 1
    return jax.lax.dynamic_update_slice(a, a[:3], (1, 0, 0)).reshape(1, 4, 1)


def probe_quadratic_scans(platform: str, seconds: Callable[[int], float] | None = None, steps: int = STEPS) -> Probe:
    """From the times of two scans, one longer than the other, that stack one number a step.

    Args:
        platform: where they run; the fault is one of the CPU's compiler.
        seconds: what a scan of so many steps takes; None measures it.
        steps: of the shorter scan.
    """
    issue = "jax-ml/jax#40101"
    if platform != "cpu":
        return Probe(issue, QUADRATIC, "not run", f"it concerns the CPU, and this is {platform}")
    try:
        short, long = map(seconds or _seconds_of_scan, (steps, FACTOR * steps))
    except Exception as error:  # a compiler can fail in any way; the rest of the report still says something
        return Probe(issue, QUADRATIC, "not measured", _first_line(error))
    ratio = long / short
    present = ratio >= QUADRATIC_FROM
    return Probe(
        issue,
        QUADRATIC,
        "present" if present else "absent",
        f"a scan of {steps:,} steps takes {short:.1e} s, one of {FACTOR * steps:,} {ratio:.1f} times as long",
        {"steps": steps, "seconds": short, "longer_seconds": long, "ratio": ratio},
        f"{_another_than('0.11.1')}; until then {NO_KERNELS_OF_LOOPS}" if present else "",
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _another_than(*releases: str) -> str:
    """jax too: it refuses a jaxlib that is newer than itself."""
    return f"pip install --upgrade jax 'jaxlib{','.join(f'!={release}' for release in releases)}'"


def _seconds_of_scan(steps: int) -> float:
    """The shortest of several runs, once compiled."""

    @jax.jit
    def run(carry: jax.Array) -> Any:
        return jax.lax.scan(lambda h, _: (0.999 * h + 0.001, h), carry, None, length=steps)

    carry, best = jnp.ones(()), float("inf")
    jax.block_until_ready(run(carry))
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(run(carry))
        best = min(best, time.perf_counter() - start)
    return best


def lines(probes: Sequence[Probe]) -> list[str]:
    """The probes, one line each, and under it what to do."""
    found = []
    for probe in probes:
        found.append(f"{probe.issue:<17} {probe.verdict:<8} {probe.fault}: {probe.because}")
        if probe.fix:
            found.append(f"{'':<17} fix: {probe.fix}")
    return found
