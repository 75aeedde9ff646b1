"""Ask a trained model: held-out examples, texts, a file of your own, or step by step from the standard input."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from experiments.runner import directories, training
from experiments.runner.config import ConfigError
from experiments.runner.study import Predictor, Study
from jaxrnn._checks import nearest


def choose(study: Study, config: Any, directory: Path, model: str | None, seed: int | None, best: bool) -> Any:
    """``(predictor, params, title)`` of one model and seed of a run.

    Raises:
        ConfigError: the run has no such model or seed.
        directories.RunError, checkpoints.CheckpointError: there is no checkpoint of it, or no readable one.
    """
    models = list(study.models(config))
    model = models[0] if model is None else model
    if model not in models:
        raise ConfigError(
            f"--model: expected {' or '.join(map(repr, models))}, got {model!r}{nearest(model, models, '')}"
        )
    seeds = config.train.seeds
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise ConfigError(f"--seed: expected one of {', '.join(map(str, seeds))}, got {seed}")
    settings = study.settings(config, model)
    step, params, kept = training.stored(model, study.task(config, model), settings, directory)
    place = seeds.index(seed)
    if best:
        step, params = int(kept.step[place]), kept.params
        if not step:
            raise directories.RunError(
                f"{directory}: no score of {model}, seed {seed}, was measured yet; leave out --best"
            )
    one = jax.tree.map(lambda a: a[place], params)
    return study.predictor(config, model), one, f"{model}, seed {seed}, after step {step}"


def held_out(predictor: Predictor, params: Any, count: int) -> Iterator[str]:
    """A line for each of some held-out examples."""
    inputs, truth = predictor.examples()
    inputs, truth = np.asarray(inputs)[:, :count], np.asarray(truth)[:count]
    answers = np.asarray(jax.jit(predictor.answer)(params, inputs))
    for place, (answer, right) in enumerate(zip(answers, truth, strict=True)):
        yield f"{place}: {predictor.say(answer, right)}"


def of_texts(predictor: Predictor, params: Any, texts: Sequence[str]) -> Iterator[str]:
    """A line for each text.

    Raises:
        ConfigError: the model reads numbers; a text that it cannot read.
    """
    if predictor.read is None:
        raise ConfigError("--text: this model reads no texts; give --input FILE")
    answers = np.asarray(jax.jit(predictor.answer)(params, predictor.read(texts)))
    for text, answer in zip(texts, answers, strict=True):
        yield f"{text}: {predictor.say(answer, None)}"


def of_file(predictor: Predictor, params: Any, path: Path, out: Path | None) -> Iterator[str]:
    """A line for each example of a .npy file of inputs, (T, N, …); the answers, (N, …), into another.

    Raises:
        ConfigError: the file is no array like those that the model was trained on.
    """
    try:
        inputs = np.load(path, mmap_mode="r")  # the system compares what the header says with the file
    except (
        EOFError,
        NotImplementedError,  # zipfile's, of an archive of a later version
        OSError,
        ValueError,
        MemoryError,
        OverflowError,
        zipfile.BadZipFile,
    ) as error:
        raise ConfigError(f"--input: {path}: not a readable .npy file: {error}") from None
    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, predictor.examples()[0]))
    wanted = f"{like.dtype} (T, N{''.join(f', {size}' for size in like.shape[2:])})"
    if not isinstance(inputs, np.ndarray) or inputs.ndim != like.ndim or inputs.shape[2:] != like.shape[2:]:
        came = f"{inputs.dtype} {inputs.shape}" if isinstance(inputs, np.ndarray) else type(inputs).__name__
        raise ConfigError(f"--input: {path}: expected an array {wanted}, time first, got {came}")
    if inputs.dtype.kind != np.dtype(like.dtype).kind:
        raise ConfigError(f"--input: {path}: expected an array {wanted}, got {inputs.dtype}; convert it with astype")
    _check_tokens(f"--input: {path}", predictor.tokens, inputs)
    answers = np.asarray(jax.jit(predictor.answer)(params, inputs.astype(like.dtype)))
    if out is not None:
        np.save(out, answers)
    for place, answer in enumerate(answers):
        yield f"{place}: {predictor.say(answer, None)}"


def step_by_step(predictor: Predictor, params: Any, lines: Iterable[str]) -> Iterator[str]:
    """A line of JSON for each line of input: one step of one sequence, answered before the next one is read.

    ``[1, 0, 0]``, or a number where a step is one; an empty line begins a new sequence. The step is compiled once.

    Raises:
        ConfigError: the model answers once, at the end; a line is no step of its inputs.
    """
    if predictor.cell is None:
        raise ConfigError("--steps: this model answers once it has read the whole sequence; give --input FILE")
    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, predictor.examples()[0]))
    shape = like.shape[2:]
    served = jr.stream(predictor.cell)
    step = jax.jit(lambda params, carry, x: served.step(params, carry, predictor.encode(x)), donate_argnums=1)
    carry = served.initial_carry(params)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            carry = served.initial_carry(params)
            continue
        try:
            x = np.asarray(json.loads(line))
        except (ValueError, RecursionError):
            raise ConfigError(
                f"line {number}: expected JSON, such as {_example(shape)}, got {line.strip()!r}"
            ) from None
        if x.shape != shape or x.dtype.kind not in "iuf" or not np.isfinite(x).all():
            raise ConfigError(f"line {number}: expected a step such as {_example(shape)}, got {line.strip()}")
        _check_tokens(f"line {number}", predictor.tokens, x)
        carry, y = step(params, carry, jnp.asarray(x.astype(like.dtype)))
        yield json.dumps([float(f"{value:.6g}") for value in np.asarray(y).tolist()])


def _check_tokens(where: str, tokens: int | None, inputs: np.ndarray) -> None:
    """Inputs (T, N), or one step (), are from 0 to tokens - 1; None where they are no tokens."""
    if tokens is None:
        return
    outside = np.argwhere((inputs < 0) | (inputs >= tokens) | (inputs != np.floor(inputs)))
    if len(outside):
        at = tuple(outside[0])
        place = f" at step {at[0]} of sequence {at[1]}" if at else ""
        raise ConfigError(f"{where}: expected tokens from 0 to {tokens - 1}, got {inputs[at]}{place}")


def _example(shape: tuple[int, ...]) -> str:
    return json.dumps(np.zeros(shape, int).tolist())
