"""The reversed strings: their data, what is counted as exact, and the files of a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from experiments import reverse
from experiments.reports import samples
from experiments.reverse import Config, data
from experiments.runner import strings as of_strings
from experiments.runner.training import cross_entropy
from experiments.runner.translator import translator
from tests.cases import randomised
from tests.experiments import tiny


@pytest.mark.parametrize("order", ["reverse", "sort"])
def test_strings_are_reversed_or_sorted(order):
    tokens, targets = map(np.asarray, data.draw(jax.random.key(0), 5, 2, 4, 600, order))
    assert tokens.shape == (4, 600) and targets.shape == (5, 600)
    lengths = np.asarray(of_strings.lengths_of(tokens))
    # Each of three lengths has 200 of 600 strings, with a standard deviation of 12.
    assert set(lengths) == {2, 3, 4} and np.abs(np.bincount(lengths)[2:] - 200).max() < 60
    for b, length in enumerate(lengths):
        string = tokens[:length, b]
        assert string.min() >= 1 and string.max() <= 5 and not tokens[length:, b].any()
        expected = string[::-1] if order == "reverse" else np.sort(string)
        np.testing.assert_array_equal(targets[:, b], [*expected, *[of_strings.STOP] * (5 - length)])
    np.testing.assert_array_equal(of_strings.read(targets)[1:], targets[:-1])
    assert not of_strings.read(targets)[0].any()


def test_an_answer_is_exact_with_its_end():
    targets = np.array([[3, 4], [1, 2], [0, 5], [0, 0]])  # lengths 2 and 3
    right = np.array([[3, 4], [1, 2], [0, 5], [9, 0], [9, 9]])  # what follows the end does not count
    assert of_strings.exact(right, targets).tolist() == [True, True]
    for place, string in (((0, 0), 0), ((2, 0), 0), ((3, 1), 1)):
        wrong = right.copy()
        wrong[place] = 7
        assert of_strings.exact(wrong, targets).tolist() == [string != 0, string != 1]


def test_validation_and_test_strings_are_others_than_those_trained_on():
    config = Config.model_validate({"experiment": "reverse", "task": {"validation": 40, "test": 40, "longer": [20]}})
    task = reverse.task(config, "luong")
    batch = task.batch(jax.random.key(0), 3, ())
    held_out = reverse.tests(config)
    assert list(held_out) == ["exact", "exact_20"] and set(
        np.asarray(of_strings.lengths_of(held_out["exact_20"].tokens))
    ) == {20}
    drawn = np.concatenate([batch.tokens, task.shared.tokens, held_out["exact"].tokens], axis=1).T
    assert len({tuple(string) for string in drawn.tolist()}) == len(drawn)
    assert task.score == "validation_exact" and not task.lower


@pytest.mark.parametrize("form", ["luong", pytest.param("none", marks=pytest.mark.full)])
def test_a_model_is_taught_and_answers_step_by_step(form):
    """The loss, and the greedy answer, by single steps of the cells."""
    model = translator(form, (3, 3), 4, 5)
    params = randomised(model.init(jax.random.key(0)), 1)
    strings = data.draw(jax.random.key(1), 3, 1, 3, 4, "reverse")
    lengths = of_strings.lengths_of(strings.tokens)
    loss, answers = jax.jit(lambda p, s: (model.loss(p, s), model.answer(p, s.tokens, 4)))(params, strings)

    encoder = jr.stack(jr.embedding(4, 4), jr.bidirectional(jr.gru(4, 5), jr.gru(4, 5)))
    (_, ends), memory = encoder.apply(params.encoder, strings.tokens, lengths=lengths)
    state = jnp.tanh(jnp.concatenate(ends, -1) @ params.bridge.W_hy + params.bridge.b_y)
    if form == "none":
        cell, carry = jr.gru(4, 5), state
    else:
        decoder = jr.decoder(jr.gru(9, 5), attention=jr.attention.general(5, 10))
        cell = decoder.bind(params.decoder, memory, lengths=lengths)
        carry = cell.initial_carry(params.decoder, (4,))._replace(cell=state)

    def logits_of(carry, token):
        carry, y = cell.step(params.decoder, carry, params.embedding.table[token])
        return carry, y @ params.readout.W_hy + params.readout.b_y

    logits_of = jax.jit(logits_of)
    begun, said, token = carry, [], jnp.zeros(4, int)
    for _ in range(4):
        carry, logits = logits_of(carry, token)
        token = logits.argmax(-1)
        said.append(token)
    np.testing.assert_array_equal(answers, said)
    losses = []
    for read, target in zip(of_strings.read(strings.targets), strings.targets, strict=True):
        begun, logits = logits_of(begun, read)
        losses.append([cross_entropy(a[None], t[None]) for a, t in zip(logits, target, strict=True)])
    due = np.arange(4)[:, None] <= np.asarray(lengths)
    np.testing.assert_allclose(loss, np.array(losses)[due].mean(), rtol=1e-5)  # float32


@pytest.mark.full
def test_a_tiny_run_leaves_its_files(tmp_path):
    assert tiny.run("reverse", tmp_path, "train.steps=4", "train.batch_size=4") == 0
    run = tmp_path / "reverse-001"
    (model,) = json.loads((run / "summary.json").read_text())["models"]
    assert len(model["exact"]["each"]) == 2 and len(model["exact_4"]["each"]) == 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = [max(line["validation_exact"] for line in lines if line["seed"] == seed) for seed in (5, 3)]
    assert model["validation_exact"]["each"] == best
    assert "| exact, length 2 to 3 | exact, length 4 |" in (run / "table.md").read_text()
    errors, words, shown = samples.read(run)
    assert errors.groups[-1] == "4"
    assert [1 - seed[-1] for seed in errors.by_model["luong"]] == pytest.approx(model["exact_4"]["each"])
    read, due, said = words.rows[0]
    assert due.split() == read.split()[::-1] and said.right == (said.text == due)
    assert np.allclose(np.sum(shown.values, axis=1), 1, atol=1e-5) and shown.rows[-1] == "end"
    assert "Where the decoder looks: luong" in (run / "report.html").read_text()
    for figure in ("attention.png", "curves.png"):
        assert (run / figure).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
