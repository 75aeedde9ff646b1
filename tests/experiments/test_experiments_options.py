"""What the keys of [train] do to a training: accumulate, nonfinite, patience, precision."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import EXPERIMENTS
from experiments.runner import config, training
from jaxrnn.training import NonFiniteError


def settings(**train):
    plain = {"optimizer": "sgd", "schedule": "constant", "clip": "none", "learning_rate": 0.5, "log_every": 2}
    return config.Train.model_validate({**plain, "seeds": [3, 1], **train})


# ---- accumulate --------------------------------------------------------------------------------


def test_accumulated_batches_make_one_step_on_their_mean_gradient():
    task = training.Task(
        init=lambda key: jnp.asarray(4.0),
        batch=lambda key, number, shared: number.astype(jnp.float32),
        loss=lambda w, x, key, shared: ((w - x) ** 2 / 2, {"x": x}),
        evaluate=lambda w, shared: {"w": w},
        score="w",
    )
    result, params, _ = training.fit("w", task, settings(accumulate=2, steps=2))
    # w = 4, batches 0 and 1: loss (8 + 4.5) / 2, gradient (4 + 3) / 2, w = 4 - 0.5 * 3.5 = 2.25.
    # Batches 2 and 3: loss (0.03125 + 0.28125) / 2, gradient (0.25 - 0.75) / 2, w = 2.25 + 0.5 * 0.25.
    assert params.tolist() == [2.375, 2.375]
    (block,) = result.history
    assert block.step == 2  # of the optimiser
    assert block.values["loss"].tolist() == [(6.25 + 0.15625) / 2] * 2
    assert block.values["grad_norm"].tolist() == [(3.5 + 0.25) / 2] * 2
    assert block.values["x"].tolist() == [1.5, 1.5]


# ---- nonfinite ---------------------------------------------------------------------------------


def halving(lost_at):
    """loss = w² / 2 from w = 4; of seed 1 not finite at some batches, ``{number: "loss" or "gradient"}``."""
    of_seed_1 = jax.random.key_data(jax.random.split(jax.random.key(1))[1])

    def batch(key, number, shared):
        mine = (jax.random.key_data(key) == of_seed_1).all()
        lost = {of: [n for n, quantity in lost_at.items() if quantity == of] for of in ("loss", "gradient")}
        at = {of: mine & jnp.isin(number, jnp.array(numbers, jnp.int32)) for of, numbers in lost.items()}
        return jnp.where(at["loss"], jnp.inf, 0.0), at["gradient"]

    def loss(w, batch, key, shared):
        offset, steep = batch
        # Beside a finite loss, a root's slope at 0 is none: the loss is lost without the gradient, or the reverse.
        root = jnp.where(steep, jnp.sqrt(jnp.where(steep, w - jax.lax.stop_gradient(w), 1.0)), 0.0)
        return w**2 / 2 + offset + root, {}

    return training.Task(lambda key: jnp.asarray(4.0), batch, loss, lambda w, shared: {"w": w}, "w")


@pytest.mark.parametrize(
    ("lost_at", "quantity", "step"),
    [({2: "loss"}, "loss", 3), ({1: "gradient", 2: "loss"}, "gradient", 2), ({3: "gradient"}, "gradient", 4)],
)
def test_stop_says_which_model_seed_quantity_and_step(lost_at, quantity, step):
    seen = []
    with pytest.raises(NonFiniteError) as error:
        training.fit("w", halving(lost_at), settings(steps=8), on_block=seen.append)
    assert str(error.value) == f"w, seed 1: the {quantity} is not finite at step {step}."
    assert [block.step for block in seen] == ([2] if step > 2 else [])  # the blocks before


def test_record_goes_on_and_the_points_tell():
    task = halving({2: "loss", 5: "gradient"})._replace(evaluate=lambda w, shared: {"w": jnp.abs(w)})
    result, params, best = training.fit("w", task, settings(steps=8, nonfinite="record"))
    assert [block.step for block in result.history] == [2, 4, 6, 8]
    # From an offset of the loss w knows nothing; after such a gradient it is itself no finite number.
    assert [block.nonfinite["loss"].tolist() for block in result.history] == [[0, 0], [0, 3], [0, 0], [0, 7]]
    assert [block.nonfinite["gradient"].tolist() for block in result.history] == [[0, 0], [0, 0], [0, 6], [0, 7]]
    assert result.diverged() == {1: ("loss", 3)}
    assert [block.values["loss"].tolist() for block in result.history[:2]] == [[5.0, 5.0], [0.3125, np.inf]]
    assert params[0] == 4 / 2**8 and not np.isfinite(params[1])
    assert best.step.tolist() == [8, 4] and best.params.tolist() == [4 / 2**8, 4 / 2**4]


def test_skip_leaves_parameters_and_optimizer_and_counts():
    task = halving({2: "loss", 3: "gradient", 5: "gradient", 7: "loss"})
    adam = settings(steps=8, nonfinite="skip", optimizer="adam", schedule="cosine")
    result, params, _ = training.fit("w", task, adam)
    other, skipping = np.array([block.values["w"] for block in result.history]).T
    loss = np.array([block.values["loss"] for block in result.history])[:, 1]
    assert np.array([block.values["skipped"] for block in result.history]).T.tolist() == [[0] * 4, [0, 2, 3, 4]]
    assert skipping[0] == other[0] and len(set(other)) == 4
    assert skipping[1] == skipping[0] and np.isnan(loss[1])  # both steps left out: their mean is that of nothing
    assert loss[2] == pytest.approx(skipping[1] ** 2 / 2, rel=1e-6)  # of the one step that was taken
    # Eight steps of which four were skipped are four steps: Adam's moments and the schedule, too, waited.
    assert skipping[3] == other[1] and params.tolist() == [other[3], other[1]]
    assert result.diverged() == {} and all(list(block.nonfinite) == ["parameters"] for block in result.history)


# ---- patience ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [True, False])
def test_patience_waits_for_the_last_member_and_the_best_parameters_are_kept(lower):
    def evaluate(w, shared):
        return {"score": (w - 1) ** 2 if lower else -((w - 1) ** 2)}

    task = halving({})._replace(evaluate=evaluate, score="score", lower=lower)
    # At 0.5 w is 2, 1, 0.5, …, at 0.25 it is 3, 2.25, 1.69, 1.27, 0.95, 0.71, 0.53, …: nearest to 1 at steps 2 and 5.
    among = [training.Member(seed=0, learning_rate=rate, clip_at=1.0, label={"rate": rate}) for rate in (0.5, 0.25)]
    result, params, best = training.fit("w", task, settings(steps=20, log_every=1, patience=2), among=among)
    assert [block.step for block in result.history] == [1, 2, 3, 4, 5, 6, 7]
    assert params.tolist() == [4 * 0.5**7, 4 * 0.75**7]
    assert best.step.tolist() == [2, 5] and best.params.tolist() == [1.0, 4 * 0.75**5]


# ---- precision ---------------------------------------------------------------------------------

TINY = {
    "digits": {"model": {"hidden_size": 2}},
    "adding": {"model": {"hidden_size": 2}, "task": {"lengths": [5], "held_out": 2}},
    "copy_memory": {"model": {"hidden_size": 2}, "task": {"delay": 1, "held_out": 2}},
    "flip_flop": {"model": {"hidden_size": 2}, "task": {"length": 5, "held_out": 2}},
    "clipping": {"model": {"hidden_size": 2}, "task": {"length": 5, "held_out": 2}},
}


def tiny(name, **train):
    module = importlib.import_module(EXPERIMENTS[name].module)
    return module.Config.model_validate({"experiment": name, "train": {"batch_size": 2, **train}, **TINY[name]})


def study_of(name):
    return importlib.import_module(EXPERIMENTS[name].module).STUDY


def one_step(name, model, precision):
    """The first step of the first seed, traced, and its arguments."""
    of = tiny(name, precision=precision)
    task, rules = study_of(name).task(of, model), study_of(name).settings(of, model)

    def step(members, shared):
        learn = training.steps_of(task, rules, jax.tree.map(lambda a: a[0], members), shared)
        return learn.run(learn.init(members["key"][0]), lambda key, number: task.batch(key, number, shared), 1)

    arguments = training.hyperparameters(training.members(rules, model)), task.shared
    return jax.jit(step).trace(*arguments), arguments


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_is_what_every_model_computes_in_and_its_parameters_stay_float32(name):
    for model in study_of(name).models(tiny(name)):
        program, _ = one_step(name, model, "bfloat16")
        state, measures = program.out_info
        assert "dot_general" in str(program.jaxpr) and "bf16[" in str(program.jaxpr), model
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}, model
        assert measures["loss"].dtype == np.float32, model


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("digits", "peephole_lstm"),
        ("adding", "irnn, T = 5"),
        ("copy_memory", "chrono_lstm"),
        ("flip_flop", "gru"),
        ("clipping", "cotangent"),
    ],
)
def test_a_step_in_bfloat16_is_finite(name, model):
    program, arguments = one_step(name, model, "bfloat16")
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    state, measures = program.lower().compile(compiler_options=quickly)(*arguments)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, measures)))
    assert measures["loss"][0] > 0 and measures["grad_norm"][0] > 0
