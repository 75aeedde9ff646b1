"""What the package's own code cannot do with g2p-en: gradients by letters, fixed points of the decoder."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, field_validator

import jaxrnn as jr
from experiments.pretrained import g2p_en
from experiments.pretrained.g2p_en import G2P, PHONEMES
from experiments.runner.config import Many, Rate, Seed, Table

EDGE = 1.02  # no state of a GRU lies beyond 1; Newton's method may overshoot a little


class Points(Table):
    """``[points]``: the search for fixed and slow points while the decoder reads one phoneme for ever."""

    inputs: Many[str] = ("AA1", "IY0", "S", "T", "</s>")
    starts: int = Field(default=6, gt=0)  # for each input, states of the decoder while it says the words
    noise: float = Field(default=0.1, ge=0)  # standard deviation of what is added to each number of a start
    relaxing: int = Field(default=6000, ge=0)  # steps h + (F(h) - h) / 4 before Newton's method
    steps: int = Field(default=10, gt=0)  # of Newton's method
    tolerance: Rate = 1e-7  # of q = ½ ‖F(h) - h‖²: what moves less is a slow point
    duplicates: Rate = 0.1  # points as near to each other are one
    seed: Seed = 0

    @field_validator("inputs")
    @classmethod
    def inputs_are_phonemes(cls, inputs: tuple[str, ...]) -> tuple[str, ...]:
        for name in inputs:
            if name not in PHONEMES:
                raise ValueError(f"expected phonemes of g2p-en, got {name!r}: one of {', '.join(PHONEMES)}")
        return inputs


class Saliency(NamedTuple):
    """Of B words, each of which has up to N phonemes and T letters."""

    phonemes: list[list[str]]
    gradient: np.ndarray  # (N, T, B): ‖∂ log p(phoneme n | those before, word) / ∂ e_t‖, e_t the letter's vector
    occlusion: np.ndarray  # (N, T, B): by how much log p falls where the letter is <unk>

    def agreement(self, words: list[str]) -> tuple[float, float]:
        """In which share of all phonemes both name the same letter first, and in which they would by chance."""
        same, chance = [], []
        for b, word in enumerate(words):
            for n in range(len(self.phonemes[b])):
                letters = slice(len(word))
                same.append(self.gradient[n, letters, b].argmax() == self.occlusion[n, letters, b].argmax())
                chance.append(1 / len(word))
        return float(np.mean(same)), float(np.mean(chance))


def saliency(model: G2P, words: list[str]) -> Saliency:
    """How each phoneme that is said depends on each letter that was read."""
    tokens, lengths = g2p_en.tokens_of(words)
    generated = jax.jit(lambda params: g2p_en.said(model, params, tokens, lengths))(model.params)
    said = generated.tokens  # (N, B), </s> after the end
    T, N = len(tokens), len(said)

    def log_p(params, letters):
        """(N, B): of each phoneme that was said."""
        h = g2p_en.encoded(model, params, letters, lengths)
        ys = jax.nn.log_softmax(g2p_en.logits(model, params, h, said[:-1])[0])
        return jnp.take_along_axis(ys, said[..., None], axis=-1)[..., 0]

    @jax.jit
    def both(params):
        letters = params.letters[tokens]

        def of_phoneme(n):
            by_letters = jax.grad(lambda e: log_p(params, e)[n].sum())(letters)  # words do not read each other
            return jnp.linalg.norm(by_letters, axis=-1)

        def without(t):
            there = (jnp.arange(T) == t)[:, None, None]
            return log_p(params, jnp.where(there, params.letters[g2p_en.GRAPHEMES.index("<unk>")], letters))

        fall = log_p(params, letters)[None] - jax.lax.map(without, jnp.arange(T))
        return jax.lax.map(of_phoneme, jnp.arange(N)), fall.swapaxes(0, 1)

    gradient, occlusion = map(np.asarray, both(model.params))
    phonemes = [g2p_en.spelled(generated, b) for b in range(len(words))]
    return Saliency(phonemes, gradient, occlusion)


class Point(NamedTuple):
    """A fixed point of the decoder that reads ``input`` for ever."""

    input: str
    stable: bool
    unstable_directions: int
    time_constant: float  # steps, of the slowest mode
    says: str  # the likeliest phoneme there
    probability: float
    speed: float  # q
    hits: int  # of the starts


def fixed_points(model: G2P, words: list[str], settings: Points) -> list[Point]:
    """From states of the decoder along the words, by small steps and then by Newton's method, under each input.

    A fixed point h = n of a GRU lies within (-1, 1). Where z comes near 0 q becomes small too, far outside: the small
    steps, which damp what oscillates, keep Newton's method from going there.
    """

    def F(h):
        return model.gru.step(of_gru, h, xs)[0]

    starts = near(model, words, settings)
    given = np.repeat([PHONEMES.index(name) for name in settings.inputs], settings.starts)
    table, of_gru, of_readout = model.params.decoder
    xs, h = table.table[given], jnp.tile(starts, (len(settings.inputs), 1))
    h = jax.jit(lambda h: jax.lax.fori_loop(0, settings.relaxing, lambda _, h: 0.75 * h + 0.25 * F(h), h))(h)
    search: dict[str, Any] = {"method": "newton", "steps": settings.steps, "tolerance": settings.tolerance}
    search["duplicates"] = settings.duplicates
    found = jr.gradients.find_fixed_points(model.gru, of_gru, h, xs, **search)
    if not len(found.speed):
        return []
    around = jr.gradients.linear_analysis(model.gru, of_gru, found.carry, xs[found.start])
    p = np.asarray(jax.nn.softmax(found.carry @ of_readout.W_hy + of_readout.b_y))
    inside = np.abs(np.asarray(found.carry)).max(-1) < EDGE
    points = [
        Point(
            input=PHONEMES[given[found.start[m]]],
            stable=bool(around.stable[m]),
            unstable_directions=int((np.abs(around.eigenvalues[m]) > 1).sum()),
            time_constant=float(around.time_constants[m].max()),
            says=PHONEMES[p[m].argmax()],
            probability=float(p[m].max()),
            speed=float(found.speed[m]),
            hits=int(found.hits[m]),
        )
        for m in np.flatnonzero(inside)
    ]
    order = {name: place for place, name in enumerate(settings.inputs)}
    return sorted(points, key=lambda point: (order[point.input], not point.stable, -point.hits))


def near(model: G2P, words: list[str], settings: Points) -> jax.Array:
    """(starts, H): states that the decoder is in while it says the words, with noise."""
    tokens, lengths = g2p_en.tokens_of(words)

    @jax.jit
    def run(params):
        generated = g2p_en.said(model, params, tokens, lengths)
        h = g2p_en.encoded(model, params, params.letters[tokens], lengths)
        return g2p_en.logits(model, params, h, generated.tokens[:-1])[1], generated.lengths

    states, ends = map(np.asarray, run(model.params))  # (N, B, H), (B,)
    states = states[np.arange(len(states))[:, None] < ends]
    rng = np.random.default_rng(settings.seed)
    chosen = states[rng.integers(len(states), size=settings.starts)]
    return jnp.asarray((chosen + settings.noise * rng.normal(size=chosen.shape)).astype(chosen.dtype))
