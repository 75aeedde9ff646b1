"""The online_copy experiment: its strings and its course by hand, learners that must agree, the files of a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from experiments import learners, online_copy
from experiments.online_copy import strings
from experiments.runner.command import main

BOUND, SHORTER = 0.5, 2


def config(**tables):
    data = {"steps": 40, "batch_size": 3, **tables.pop("data", {})}
    model = {"hidden_size": 4, **tables.pop("model", {})}
    return online_copy.Config.model_validate({"experiment": "online_copy", "model": model, "data": data, **tables})


def test_strings_and_their_course_are_those_of_the_definition():
    """Batch by batch in NumPy: each string by itself, and a longer one after a batch that was cheap enough."""
    rng = np.random.default_rng(0)
    T, B = 120, 3
    characters, us, lost = rng.integers(0, 2, (T, B)), rng.uniform(size=(T, B)), rng.uniform(size=T)

    def step(place, t):
        x, target = strings.shown(place, jnp.asarray(characters), t)
        after = strings.following(place, jnp.asarray(lost)[t], jnp.asarray(us)[t], bound=BOUND, shorter=SHORTER)
        return after, (place, x, target)

    shown = jax.jit(lambda: jax.lax.scan(step, strings.first(B), jnp.arange(T))[1])()
    place, xs, targets = jax.tree.map(np.asarray, shown)
    t, L, lengths, reached = 0, 1, [1] * B, []
    while t + 2 * L < T:
        reached.append(L)
        for b, n in enumerate(lengths):
            assert (place.longest[t], place.lengths[t, b]) == (L, n) and max(1, L - SHORTER) <= n <= L
            string, rows = characters[t : t + n, b], slice(t, t + 2 * L + 1)
            want = np.zeros((2 * L + 1, strings.INPUTS))
            want[np.arange(n), string] = 1
            want[n, 2] = 1
            np.testing.assert_array_equal(xs[rows, b], want)
            due = np.zeros(2 * L + 1, bool)
            due[n + 1 : 2 * n + 1] = True
            np.testing.assert_array_equal(targets.due[rows, b], due)
            np.testing.assert_array_equal(targets.character[rows, b][due], string)
        last = t + 2 * L
        L += int(lost[t : last + 1].sum() < BOUND * sum(lengths))
        lengths = [L - int(u * min(L, SHORTER + 1)) for u in us[last]]
        t = last + 1
    assert 3 < reached[-1] < len(reached)  # longer after some batches, and not after all


def test_bits_are_those_of_the_answers_that_are_due():
    odds, character = np.array([0.3, -2.0, 5.0]), np.array([1.0, 0.0, 0.0])
    p = 1 / (1 + np.exp(-odds))
    want = -np.log2(p[0]) - np.log2(1 - p[1])
    target = strings.Wanted(jnp.asarray(character), jnp.array([True, True, False]))
    np.testing.assert_allclose(strings.bits(jnp.asarray(odds)[:, None], target), want, rtol=1e-6)


def test_the_rate_is_that_of_most_worth():
    assert learners.best([0.1, 0.2, 0.3], np.array([[1.0, 2.0], [3.0, 3.0], [9.0, np.nan]])) == 0.2


@pytest.mark.full
def test_bptt_at_the_end_is_that_of_the_whole_batch():
    """rtrl's gradients of a batch together, beside jax.grad of the scan; the masks leave every unit what it hears."""
    of = config()
    learner = online_copy.Learner("bptt", sparse=True)
    cell, online = learner.cell(of), learner.online(of)
    params = cell.init(jax.random.key(1))
    assert (np.asarray(params[0].masks[0]).reshape(4, 3, 4).sum(0) == 1).all()  # of 4 units a quarter
    place = strings.first(2)._replace(longest=jnp.int32(2), lengths=jnp.array([2, 1]))
    characters, steps = jnp.array([[1, 0], [0, 1], [1, 1], [0, 0], [0, 1]]), []
    for t in range(5):
        steps.append(strings.shown(place, characters, t))
        place = place._replace(position=place.position + 1)
    xs, targets = jax.tree.map(lambda *a: jnp.stack(a), *steps)

    def step(state, of_step):
        state, _, grads = online.step(params, state, *of_step)
        return state, grads

    summed = jax.tree.map(lambda a: a.sum(0), jax.lax.scan(step, online.init(params, (2,)), (xs, targets))[1])
    whole = lambda p: jax.vmap(strings.bits)(jr.scan(cell).apply(p, xs)[1], targets).sum()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), summed, jax.grad(whole)(params))


@pytest.mark.full
def test_a_tiny_run_leaves_files_that_agree(tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(
        'experiment = "online_copy"\nmodel = {hidden_size = 4}\ndata = {steps = 400, batch_size = 4, bound = 9.0}\n'
        'learn = {dense = ["window", "bptt"], windows = [3], sparse = ["snap2"], rates = [0.01, 0.03], '
        "validation_seeds = [9], seeds = [0, 1]}\n"
    )
    assert main(["run", str(path), "--out", str(tmp_path)]) == 0
    run = tmp_path / "online_copy-001"
    summary = json.loads((run / "summary.json").read_text())["measured"]
    assert [m["learner"] for m in summary] == ["window of 3", "bptt, at the end", "sparse, snap2"]
    table = (run / "table.md").read_text()
    for m in summary:
        row = next(line for line in table.splitlines() if line.startswith(f"| {m['learner']} | "))
        assert f" | {np.mean(m['learnt']):.1f} ± " in row
        assert m["learnt"] == [19, 19]  # every batch is cheap enough, and those of 1 to L take L² + 2 L steps
        assert m["seconds"] > 0 and m["rate"] in (0.01, 0.03)
    assert (run / "lengths.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and (run / "lengths.svg").exists()
