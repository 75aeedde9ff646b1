"""How long their runtime takes and how long ours does, one after the other in turns."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrnn as jr
from experiments.pretrained import g2p_en, silero
from experiments.pretrained.g2p_en import G2P
from experiments.pretrained.silero import Silero, Theirs

BATCH = 16  # sounds at once


class Timed(NamedTuple):
    network: str
    what: str
    theirs: float  # milliseconds, the median
    ours: float


def milliseconds(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """Medians of as many turns, after one that compiles and warms up."""
    taken: list[list[float]] = [[] for _ in functions]
    for function in functions:
        jax.block_until_ready(function())
    for _ in range(repeats):
        for function, of in zip(functions, taken, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            of.append(1000 * (time.perf_counter() - start))
    return [float(np.median(of)) for of in taken]


def of_silero(network: Silero, of: Theirs, repeats: int) -> list[Timed]:
    """The LSTM alone: of one sound, of several at once, and frame by frame."""
    session, run = silero.alone(network), silero.ours(network)
    inputs = network.node.inputs
    T, rows = len(of.xs), []
    for B in (1, BATCH):
        xs = np.repeat(of.xs, B, axis=1)
        state = np.zeros((1, B, network.sizes[1]), np.float32)
        given = {inputs["X"]: xs, inputs["initial_h"]: state, inputs["initial_c"]: state}
        carry = silero.zeros(network, B)
        took = milliseconds(
            repeats,
            functools.partial(session.run, None, given),
            functools.partial(run, network.params, xs, carry),
        )
        rows.append(Timed("silero-vad", f"{T} frames of {B} sound{'s' * (B > 1)}", *took))
    return [*rows, frame_by_frame(network, of, session, repeats)]


def frame_by_frame(network: Silero, of: Theirs, session: Any, repeats: int) -> Timed:
    """As on live sound: a call for each frame, which hands the state on."""
    inputs, some = network.node.inputs, of.xs[:100]
    served = jr.stream(jr.lstm(*network.sizes))
    step = jax.jit(served.step, donate_argnums=1)

    def theirs():
        h = c = np.zeros((1, 1, network.sizes[1]), np.float32)
        for x in some:
            y, h, c = session.run(None, {inputs["X"]: x[None], inputs["initial_h"]: h, inputs["initial_c"]: c})
        return y

    def ours():
        carry = served.initial_carry(network.params, (1,))
        for x in some:
            carry, y = step(network.params, carry, x)
        return y

    took = [each / len(some) for each in milliseconds(repeats, theirs, ours)]
    return Timed("silero-vad", "1 frame, in a call of its own", *took)


def of_g2p(model: G2P, package: Any, words: list[str], repeats: int) -> list[Timed]:
    """Letters to phonemes: one word, and all words, which the package says one after the other."""
    rows = []
    for some in (words[:1], words):
        tokens, lengths = g2p_en.tokens_of(some)
        run = jax.jit(lambda params, tokens, lengths: g2p_en.said(model, params, tokens, lengths).tokens)
        took = milliseconds(
            repeats,
            functools.partial(one_by_one, package, some),
            functools.partial(run, model.params, tokens, lengths),
        )
        rows.append(Timed("g2p-en", f"1 word, {some[0]}" if len(some) == 1 else f"{len(some)} words", *took))
    return rows


def one_by_one(package: Any, words: list[str]) -> list[list[str]]:
    """As the package does."""
    return [package.predict(word) for word in words]
