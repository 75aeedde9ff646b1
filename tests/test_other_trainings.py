"""A checkpoint that another training has written is told, or refused; and one that had ended says so."""

import json
import logging
import shutil
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as jr
from jaxrnn import training
from jaxrnn.training import checkpoints
from jaxrnn.training.checkpoints import CheckpointError

OPTIONS = {"steps": 4, "block_steps": 1, "save_every": 1, "labels": [{"seed": 0}], "config": {"version": 1}}
CELLS = {"actor": jr.stack(jr.gru(2, 3), jr.readout(3, 1)), "critic": [jr.lstm(2, 3)]}


def state_of(optimizer):
    w = {"w": jnp.ones(2)}
    return {"params": w, "opt": optimizer.init(w), "n": jnp.zeros((), jnp.int32)}


STATE = state_of(optax.adam(1e-3))


def counts(*names, calls=None):
    """A block that counts its steps and measures so many things."""

    def block(state):
        if calls is not None:
            calls.append(1)
        return {**state, "n": state["n"] + 1}, {name: state["n"][None] / 2 for name in names}, {}

    return block


class Crash(Exception):
    pass


def crash(result):
    if result.step == 3:
        raise Crash


def started(directory, ended, block=None, **options):
    """A training that has ended, or one that has crashed after two steps were saved."""
    options = {**OPTIONS, "model": CELLS, **options, "checkpoint": directory}
    if ended:
        return training.fit(block or counts("loss"), STATE, **options)
    with pytest.raises(Crash):
        training.fit(block or counts("loss"), STATE, **options, on_block=crash)


@pytest.fixture(scope="module", params=[False, True], ids=["crashed", "ended"])
def before(request, tmp_path_factory):
    """A directory of a training before, to be copied, and whether it had ended."""
    directory = tmp_path_factory.mktemp("before")
    started(directory, request.param)
    return directory, request.param


def other_cells(**changed):
    return {"model": {**CELLS, **changed}}


class Weights(NamedTuple):
    w: jax.Array


def linear():
    return lambda x: x


# What differs, and what is said of it.
OTHERS = {
    "optimiser": ({"state": state_of(optax.adamw(1e-3))}, "of the state, opt.2 is missing there and EmptyState here"),
    "record": (
        {"state": {**STATE, "params": Weights(**STATE["params"])}},
        "of the state, params is dict there and Weights here",
    ),
    "option": (
        other_cells(critic=[jr.lstm(2, 3, forget_bias=2.0)]),
        "of the model, critic.0.forget_bias is missing there and 2.0 here",
    ),
    "function": (
        other_cells(actor=jr.stack(jr.gru(2, 3, activation=jnp.sin), jr.readout(3, 1))),
        "of the model, actor.0.activation is missing there and sin here",
    ),
    "cell": (other_cells(critic=[jr.gru(2, 3)]), "of the model, critic.0 is lstm there and gru here"),
    "one more": (other_cells(more=jr.gru(1, 1)), "of the model, more is missing there and gru here, more.hidden_size"),
    "user's": (other_cells(critic=[jr.lstm(2, 3)._replace(spec=None)]), "critic.0 is lstm there and a cell"),
    "measures": ({"block": counts("loss", "error")}, "of the measures, loss there and error, loss here"),
    "none": ({"block": counts()}, "of the measures, loss there and none here"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_training_is_told_or_refused(tmp_path, name, before):
    directory = shutil.copytree(before[0], tmp_path / "copy")
    changed, said = OTHERS[name]
    options = {**OPTIONS, "model": CELLS, "checkpoint": directory, **changed}
    block, state = jax.jit(options.pop("block", counts("loss"))), options.pop("state", STATE)
    rows = (directory / "metrics.jsonl").read_bytes().splitlines()[:2]
    refused = f"{directory}: was written by another training: .*{said}.*Resume it with"
    with pytest.raises(CheckpointError, match=refused):
        training.fit(block, state, **options, strict=True)
    assert (directory / "metrics.jsonl").read_bytes().splitlines()[:2] == rows
    with pytest.warns(UserWarning, match=said) as caught:
        fitted = training.fit(block, state, **options)
    assert [warning.filename for warning in caught] == [__file__]
    assert str(caught[0].message).endswith("It is used all the same; strict=True refuses it.")
    assert (fitted.resumed, fitted.already_finished, int(fitted.state["n"])) == (True, before[1], 4)


def test_the_same_training_is_neither(tmp_path, caplog):
    """In other processes functions, keys of dicts and arrays are other objects; jitted or not is no difference."""
    started(tmp_path, False, model=jr.gru(2, 3, activation=linear()))
    state, calls = {name: STATE[name] for name in reversed(STATE)}, []
    options = {**OPTIONS, "checkpoint": tmp_path, "strict": True}
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, logger="jaxrnn.training"):
        warnings.simplefilter("error")
        fitted = training.fit(counts("loss", calls=calls), state, model=jr.gru(2, 3, activation=linear()), **options)
        assert (fitted.resumed, fitted.already_finished, len(calls)) == (True, False, 2)
        again = training.fit(counts("loss", calls=calls), state, **options)
        assert (again.resumed, again.already_finished, len(calls)) == (True, True, 2)
        assert training.fit(jax.jit(counts("loss")), state, **options).already_finished
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{tmp_path}: goes on after step 2", *[f"{tmp_path}: had ended after step 4, is read, not run"] * 2]


def test_a_new_training_is_not_resumed(tmp_path):
    fitted = started(tmp_path, True)
    assert (fitted.resumed, fitted.already_finished) == (False, False)
    alone = training.fit(counts("loss"), STATE, **OPTIONS)
    assert (alone.resumed, alone.already_finished) == (False, False)


def test_a_config_has_steps_of_its_own(tmp_path):
    """Which once hid those of the training: more of them came to nothing."""
    block = counts("loss")
    options = {**OPTIONS, "checkpoint": tmp_path, "config": {"steps": 7, "block_steps": 1}}
    training.fit(block, STATE, **options)
    assert training.fit(block, STATE, **options).already_finished
    with pytest.raises(CheckpointError, match="other settings: steps was 4, is 8"):
        training.fit(block, STATE, **{**options, "steps": 8})
    with pytest.raises(CheckpointError, match=r"other settings: config\.steps was 7, is 9"):
        training.fit(block, STATE, **{**options, "config": {"steps": 9, "block_steps": 1}})


def returns(state):
    return lambda _: (state, {}, {})


W = jnp.zeros(2)
NO_STATES = {
    "NumPy": (returns(W), {"w": np.zeros(2)}, r"state\['w'\] must be an array of JAX, got ndarray; use jnp.asarray"),
    "a number": (returns(W), 0.0, "state must be an array of JAX, got float"),
    "a number later": (returns(0.0), W, "state must be an array of JAX, got float"),
    "another dtype": (returns(W.astype("bfloat16")), W, r"like the one it was given, float32\[2\], got bfloat16\[2\]"),
    "another shape": (returns(W[:1]), W, r"float32\[2\], got float32\[1\]; cast it back"),
    "another tree": (returns((W, W)), W, r"PyTreeDef\(\*\), got PyTreeDef\(\(\*, \*\)\)"),
    "a list of measures": (lambda w: (w, [1.0], {}), W, "its measures as a dict, got list"),
    "no nonfinite": (lambda w: (w, {}, None), W, "its nonfinite as a dict, got NoneType"),
}


@pytest.mark.parametrize("name", NO_STATES)
def test_states_that_no_run_could_go_on_from_are_refused(name):
    block, state, message = NO_STATES[name]
    with pytest.raises(TypeError, match=f"training.fit: .*{message}"):
        training.fit(block, state, steps=1, block_steps=1)


def test_paths_are_words_too_and_measures_numbers_of_python(tmp_path):
    block, options = lambda w: (w + 1, {"loss": 0.5}, {}), {"steps": 2 * 10**9, "block_steps": 10**9}
    best = {"stop_when": training.patience("loss", 5, keep=lambda w: w), "checkpoint": str(tmp_path)}
    fitted = training.fit(block, W, **options, **best)
    assert fitted.history[-1].values["loss"] == 0.5 and fitted.history[-1].step == 2 * 10**9
    assert int(fitted.best.step) == 10**9 and fitted.best.params.tolist() == [1, 1]
    assert checkpoints.latest(str(tmp_path)) == checkpoints.restore(str(tmp_path), {"best": W, "state": W}).step
    with pytest.raises(ValueError, match=r"checkpoints\.save: step must be 0 or more, got -1"):
        checkpoints.save(str(tmp_path), -1, W)
    with pytest.raises(TypeError, match=r"checkpoints\.save: note must be JSON: .* serializable; give numbers"):
        checkpoints.save(str(tmp_path), 1, W, {"f": len})


def test_what_is_kept_is_names_alone(tmp_path):
    """So it is the same on other devices, with other versions of JAX."""
    started(tmp_path, True)
    kept = checkpoints.note(tmp_path)["training"]
    assert (
        kept
        == json.loads(json.dumps(kept))
        == {
            "state": {
                "root": "dict",
                "opt": "tuple",
                "opt.0": "ScaleByAdamState",
                "opt.0.mu": "dict",
                "opt.0.nu": "dict",
                "opt.1": "EmptyState",
                "params": "dict",
            },
            "model": {
                "actor": "stack",
                "actor.0": "gru",
                "actor.0.hidden_size": "3",
                "actor.0.input_size": "2",
                "actor.1": "readout",
                "actor.1.input_size": "3",
                "actor.1.output_size": "1",
                "critic.0": "lstm",
                "critic.0.hidden_size": "3",
                "critic.0.input_size": "2",
            },
            "labels": [{"seed": 0}],
            "measures": ["loss"],
            "keeps": None,
        }
    )


@pytest.mark.parametrize("ended", [False, True], ids=["crashed", "ended"])
def test_checkpoints_of_earlier_versions_go_on(tmp_path, monkeypatch, ended):
    """They kept the config, the seconds, the records' checksum and whether it had ended."""
    save = checkpoints.save
    monkeypatch.setattr(
        checkpoints, "save", lambda *given: save(*given[:-1], {n: v for n, v in given[-1].items() if n != "training"})
    )
    started(tmp_path, ended)
    monkeypatch.undo()
    assert set(checkpoints.note(tmp_path)) == {"config", "seconds", "crc", "finished"}
    options = {**OPTIONS, "model": CELLS, "checkpoint": tmp_path, "strict": True}
    fitted = training.fit(counts("loss"), STATE, **options)
    assert (fitted.resumed, fitted.already_finished, int(fitted.state["n"])) == (True, ended, 4)
    assert [result.step for result in fitted.history] == [1, 2, 3, 4]


def test_other_labels_are_another_training(tmp_path):
    started(tmp_path, True)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"other settings: labels was \[{'seed': 0}\], is \[{'seed': 1}\]\. Res"):
        training.fit(counts("loss"), STATE, **{**OPTIONS, "labels": [{"seed": 1}]}, checkpoint=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_what_cannot_be_kept_is_told():
    wrongs = [({"config": {"f": print}}, "config must be JSON: .*; give numbers"), ({"model": 3}, "got int; give what")]
    for wrong, said in wrongs:
        with pytest.raises(TypeError, match=f"training.fit: .*{said}"):
            training.fit(counts("loss"), STATE, **{**OPTIONS, **wrong})
