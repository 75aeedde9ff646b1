"""The long_memory experiment: its networks and what is asked of them, its training by hand, the files of a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as jr
from experiments import long_memory
from experiments.flip_flop import data
from experiments.long_memory import learning, networks
from experiments.runner.command import main
from tests.cases import draw, randomised
from tests.experiments.tiny import left_by_a_run


def network(name, run="scan", layers=2, parallel=None, **sizes):
    model = networks.Model(hidden_sizes=sizes, layers=layers)
    return networks.network(model, parallel or networks.Parallel(), name, run, 3)


def parameters(net):
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(net.model.init, jax.random.key(0))))


def test_the_models_have_about_as_many_parameters():
    counts = [parameters(network(name)) for name in networks.CELLS]
    assert min(counts) > 1950 and max(counts) < 2250


def test_a_linear_recurrence_stands_between_dense_layers():
    """Two blocks of min_gru in NumPy."""
    net = network("min_gru", min_gru=4)
    params, xs = randomised(net.model.init(jax.random.key(0)), 1), draw((6, 2, 3), 2)
    first, *blocks, last = jax.tree.map(np.asarray, params)
    h = np.maximum(xs @ first.W_hy + first.b_y, 0)
    for (W, b), dense in blocks:
        (z, n), states = np.split(h @ W + b, 2, axis=-1), [np.zeros((2, 4))]
        z, n = 1 / (1 + np.exp(-z)), np.where(n >= 0, n + 0.5, 1 / (1 + np.exp(-n)))
        for t in range(6):
            states.append((1 - z[t]) * states[-1] + z[t] * n[t])
        h = h + jax.nn.gelu(np.stack(states[1:]) @ dense.W_hy + dense.b_y)
    expected = h @ last.W_hy + last.b_y
    np.testing.assert_allclose(net.model.apply(params, xs)[1], expected, rtol=1e-5, atol=1e-6)


def test_every_recurrence_runs_as_it_is_told(monkeypatch):
    told = []

    def parallel(cell, **options):
        told.append(options)
        return jr.scan(cell)

    monkeypatch.setattr(jr, "parallel", parallel)
    settings = networks.Parallel(method="newton", methods={"lru": "associative"}, chunks=8, max_iterations=3)
    network("gru", "parallel", parallel=settings)
    network("lru", "parallel", parallel=settings)
    network("min_gru", "parallel")
    limits = {"chunks": 8, "max_iterations": 3}
    assert told == [{"method": "newton", **limits}, {"method": "associative", **limits}, {"method": "auto"}]


@pytest.mark.full
def test_sweeps_are_as_many_as_there_are_chunks_where_nothing_is_forgotten():
    """And one where all is: a min_gru whose gates are shut, and open."""
    model = networks.Model(hidden_sizes={"min_gru": 2}, layers=1)
    parallel = networks.Parallel(method="chunks", chunks=8)
    net = networks.network(model, parallel, "min_gru", "parallel", 3)
    params = randomised(net.model.init(jax.random.key(0)), 1)

    def with_gate(b):
        first, (cell, dense), last = params
        return first, (cell._replace(b=cell.b.at[:2].set(b)), dense), last

    found = networks.ask(model, parallel, "min_gru", 3, [with_gate(40.0), with_gate(-9.0)], draw((32, 1, 3), 2))
    assert found.sweeps == [1, 7] and found.methods == ["chunks", "chunks"] and found.fell_back == [0, 8]


TASK = learning.Task(length=12, pulse_rate=0.2, validation=3, test=3)
TRAIN = learning.Train(blocks=3, block_steps=2, batch_size=2, seeds=(5, 6), clip_at=0.1)


def test_validation_and_test_are_other_sequences_by_the_seed_alone():
    validation, test = learning.held_out(TASK)
    again, _ = learning.held_out(TASK)
    assert validation.pulses.shape == test.pulses.shape == (12, 3, 3)
    np.testing.assert_array_equal(validation.pulses, again.pulses)
    assert (validation.pulses != test.pulses).any()


def test_learning_is_that_of_a_plain_loop_and_the_best_block_is_tested():
    """Both ways: the second has another order of its sums."""
    net = network("gru", gru=4)
    turned = net._replace(
        model=net.model._replace(apply=lambda p, xs: jax.tree.map(lambda a: a, net.model.apply(p, xs)))
    )
    nets = {"scan": net, "parallel": turned, "nudged": net}
    trained = learning.learn(TASK, TRAIN, nets, 0.3)

    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(optax.cosine_decay_schedule(0.3, 6)))
    error = lambda params, runs: jnp.mean((net.model.apply(params, runs.pulses)[1] - runs.memories) ** 2)
    of_loss, judge = jax.jit(jax.value_and_grad(error)), jax.jit(error)
    sets = learning.held_out(TASK)
    for index, seed in enumerate(TRAIN.seeds):
        k_params, k_batches = jax.random.split(jax.random.key(seed))
        params = net.model.init(k_params)
        state, losses, validation, tested = optimizer.init(params), [], [], []
        for step in range(6):
            batch = data.draw(jax.random.fold_in(k_batches, step), 12, 2, 3, 0.2)
            loss, gradient = of_loss(params, batch)
            change, state = optimizer.update(gradient, state)
            params = optax.apply_updates(params, change)
            losses.append(loss)
            if step % 2:
                validation.append(judge(params, sets[0]))
                tested.append(judge(params, sets[1]))
        for run in ("scan", "parallel"):
            of = trained[run]
            np.testing.assert_allclose(of.losses[index], losses, rtol=1e-5)
            np.testing.assert_allclose(of.validation[index], validation, rtol=1e-5)
            jax.tree.map(lambda a, b, i=index: np.testing.assert_allclose(a[i, 3], b, rtol=1e-4), of.params, params)
            np.testing.assert_allclose(of.error[index], tested[int(np.argmin(validation))], rtol=1e-5)
    assert np.abs(trained["nudged"].losses / trained["scan"].losses - 1).max() < 1e-5
    parted = jax.tree.map(
        lambda a, b: (a != b)[:, 3].reshape(2, -1).any(1), trained["nudged"].params, trained["scan"].params
    )
    assert np.any(jax.tree.leaves(parted), axis=0).all()  # of each seed
    assert (trained["scan"].seconds > 0).all() and trained["scan"].seconds.shape == (2, 3)


def test_a_line_of_the_table_by_hand():
    config = long_memory.Config(experiment="long_memory", train=learning.Train(blocks=2, block_steps=2, seeds=(0, 1)))
    common = {"validation": np.ones((2, 2)), "error": np.array([0.1, 0.3]), "right": np.array([0.9, 1.0])}
    scan = learning.Trained(np.full((2, 4), 2.0), np.array([[1.0, 2], [3, 4]]), **common, params=())
    losses = np.array([[2.0, 2.5, 2, 2], [2, 2, 2, 1]])
    parallel = learning.Trained(losses, np.array([[0.5, 4], [3, 4]]), **common, params=())
    by_run, asked = {"scan": scan, "parallel": parallel, "nudged": scan}, networks.Asked([1, 5, 9], ["a", "b"], [0, 64])
    compared = long_memory.Compared("gru", "1 × 4", 1234, by_run, asked)
    first, second, third = (long_memory.row(config, compared, way) for way in ("scan", "parallel", "nudged"))
    shared = ("1 × 4", "1,234", "0.2000 ± 0.1414", "95.0 ± 7.1 %")
    assert first == ("gru", "scan", *shared, "1250.0", *5 * ["–"])
    beside = ("0.75 → 1.50", "1 → 9", "0 → 64", "2e-01", "1 steps")
    assert third == ("gru", "nudged", *shared, "1250.0", "1.00 → 1.00", "–", "–", "0e+00", "4 steps")
    assert second == ("gru", "parallel: a, b", *shared, "1750.0", *beside)


def test_a_nudge_is_a_unit_in_the_last_place():
    nudged = learning.nudged({"w": jnp.array([1.0, -1.0])})["w"]
    assert nudged.tolist() == [1 + 2**-23, -1 + 2**-24]


@pytest.mark.parametrize("runs", [["scan"], pytest.param(["scan", "parallel", "nudged"], marks=pytest.mark.full)])
def test_a_tiny_run_leaves_files_that_agree(runs, tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'experiment = "long_memory"\nruns = {json.dumps(runs)}\n'
        'model = {cells = ["gru"], hidden_sizes = {gru = 4}}\n'
        "task = {length = 20, validation = 2, test = 2}\ntrain = {blocks = 2, block_steps = 2, seeds = [0, 1]}\n"
    )
    assert main(["run", str(path), "--out", str(tmp_path)]) == 0
    run = tmp_path / "long_memory-001"
    figures = ("curves", *(["apart", "sweeps"] if len(runs) > 1 else []))
    assert {file.name for file in run.iterdir()} == left_by_a_run(*figures)
    (compared,) = json.loads((run / "summary.json").read_text())["compared"]
    assert compared["model"] == "gru" and list(compared["runs"]) == runs
    assert np.shape(compared["runs"]["scan"]["losses"]) == (2, 4)
    if "parallel" in runs:
        assert np.shape(compared["asked"]["sweeps"]) == (2,)
        np.testing.assert_allclose(
            compared["runs"]["parallel"]["losses"], compared["runs"]["scan"]["losses"], rtol=1e-5
        )
    lines = (run / "table.md").read_text().splitlines()
    assert lines[2].startswith("| gru | scan | 1 × 4 | 111 |")
    assert f"written to {run}" in capsys.readouterr().out
