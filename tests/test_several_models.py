"""Several models and their parameters in one file, each by its name."""

import functools
import os

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as jr
from jaxrnn import load, save
from jaxrnn.saving.files import read_header
from tests.commands import lines_of, run_command, words_of
from tests.saved import MODELS, H, I, assert_same, contents, randomised, text_of, write
from tests.user_cells import clockwork


@pytest.fixture
def path(tmp_path):
    return tmp_path / "agent.safetensors"


ACTOR = jr.stack(jr.gru(I, H), jr.readout(H, 2))
CRITIC = jr.scan(jr.lstm(I, H), plan="plain")


def agent(seed=0):
    return {"actor": (ACTOR, randomised(ACTOR, seed)), "critic": (CRITIC, randomised(CRITIC, seed + 1))}


def test_each_model_comes_back_by_its_name(path):
    """All models of the tests of files beside each other, those without parameters among them."""
    models = {name: (model, randomised(model, n)) for n, (name, model) in enumerate(MODELS.items())}
    assert save(path, models, metadata={"epoch": 3}) is None
    for name, (model, params) in models.items():
        again, weights, metadata = load(path, name)
        assert type(again) is type(model) and again.spec == model.spec and metadata == {"epoch": 3}
        assert_same(weights, params)
    assert {name.partition(".")[0] for name in read_header("test", path).tensors} == {*models} - {"no parameters"}


def test_what_the_file_says(path):
    save(path, agent())
    kept = text_of(path)
    assert kept["format"] == 2  # jaxrnn 0.1.0 says to upgrade
    assert kept["models"] == {"actor": {"spec": ACTOR.spec.to_dict()}, "critic": {"spec": CRITIC.spec.to_dict()}}
    assert kept["sha256"]["tensors"].keys() == read_header("test", path).tensors.keys()
    assert "actor.0.W_xh" in kept["sha256"]["tensors"] and "critic.W_hh" in kept["sha256"]["tensors"]
    again = path.with_name("again")
    save(again, agent())
    assert again.read_bytes() == path.read_bytes()


def test_one_model_alone_has_no_name(path):
    save(path, {"policy": (CRITIC, randomised(CRITIC))})
    assert_same(load(path, "policy")[1], randomised(CRITIC))
    save(path, CRITIC, randomised(CRITIC))
    with pytest.raises(ValueError, match=r"load: '.*' holds one model, which has no name; leave 'policy' out"):
        load(path, "policy")


def test_a_name_is_asked_for(path):
    save(path, agent())
    for run in (load, lambda path: load(path, CRITIC)):
        with pytest.raises(
            ValueError, match=r"load: '.*' holds the models 'actor', 'critic'; .*: load\(path, 'actor'\)"
        ):
            run(path)
    with pytest.raises(ValueError, match=r"'actor', 'critic', not 'critik'; did you mean 'critic'\?$"):
        load(path, "critik")


def test_a_model_that_is_given(path):
    """Beside the name, as for a file of one: it computes the same, or is refused."""
    save(path, agent())
    model, weights, _ = load(path, "critic", jr.lstm(I, H))
    assert isinstance(model, jr.Cell)
    assert_same(weights, randomised(CRITIC, 1))
    with pytest.raises(ValueError, match=r"holds the parameters of stack\(gru.* which computes something else"):
        load(path, "actor", model=CRITIC)


@pytest.mark.parametrize(
    ("models", "rest", "kind", "message"),
    [
        ({}, {}, ValueError, "the dict of models is empty; give"),
        ({"a.b": (CRITIC, None)}, {}, ValueError, "text without points.* got 'a.b'"),
        ({"": (CRITIC, None)}, {}, ValueError, "text without points.* got ''"),
        ({1: (CRITIC, None)}, {}, ValueError, "text without points.* got 1"),
        (
            {"\ud800": (CRITIC, randomised(CRITIC))},
            {},
            ValueError,
            "name '.ud800.W_xh' is no Unicode text, .* rename it",
        ),
        ({"a": CRITIC}, {}, TypeError, r"expected 'a' to be a pair \(model, params\), got Layer; give \{'a': \(model"),
        ({"a": (CRITIC,)}, {}, TypeError, r"expected 'a' to be a pair \(model, params\), got tuple of 1"),
        ({"a": (None, CRITIC)}, {}, TypeError, "a: expected a Cell or a Layer, got NoneType"),
        (agent(), {"params": {"epoch": 1}}, TypeError, "got dict as well: leave it out, or give it as metadata=…"),
        ({"a": (CRITIC, ())}, {}, ValueError, r"a\.W_hh is missing, float32 \(4, 16\)"),
        ({"a": (CRITIC, list(randomised(CRITIC)[:3]))}, {}, ValueError, r"a\.0, float32 \(3, 16\), is none of them"),
        ({"a": (ACTOR, list(randomised(ACTOR)))}, {}, ValueError, "a, stack: params should be tuple of 2"),
    ],
)
def test_what_is_refused_at_save(models, rest, kind, message, path):
    with pytest.raises(kind, match=rf"^save: .*{message}"):
        save(path, models, **rest)
    assert not path.exists()


def test_parameters_of_a_users_cell_beside_a_model(path):
    """They alone are saved, which is said aloud, and need the cell; the other model does not."""
    own = clockwork(I, H)
    with pytest.warns(
        UserWarning, match="holds the parameters of 'own' without their model: it is a user cell"
    ) as told:
        save(path, {"own": (own, randomised(own)), **agent()})
    assert len(told) == 1 and "load(path, 'own', model=model) needs it" in str(told[0].message)
    assert load(path, "actor")[0].spec == ACTOR.spec
    with pytest.raises(
        ValueError, match=r"load: .*'own' without their model: .*pass it: load\(path, 'own', model=model"
    ):
        load(path, "own")
    cell, weights, _ = load(path, "own", own)
    assert cell is own
    assert_same(weights, randomised(own))
    with pytest.raises(ValueError, match=r"load: the parameters .* do not fit the model \(user cell\): own\."):
        load(path, "own", clockwork(I, H + 2))


def test_damage_in_one_model_leaves_the_others(path):
    save(path, agent())
    header, data = contents(path)
    start, _ = header["critic.b"]["data_offsets"]
    write(path, header, data[:start] + bytes([data[start] ^ 64]) + data[start + 1 :])
    assert_same(load(path, "actor")[1], randomised(ACTOR))
    with pytest.raises(ValueError, match=r"load: the tensor critic\.b in .* is damaged"):
        load(path, "critic")


def test_tensors_that_are_nobodys(path):
    save(path, agent())
    header, data = contents(path)
    header["actr.0.b"] = header.pop("actor.0.b")
    write(path, header, data)
    with pytest.raises(ValueError, match=r"actor\.0\.b is missing, .*; actr\.0\.b, float32 \(12,\), is none of them"):
        load(path, "actor")


def test_inspect_lists_them(path, capsys):
    run = functools.partial(run_command, capsys)
    cell = jr.elman(I, H, activation=jnp.arctan)
    with pytest.warns(UserWarning, match="without their model"):
        save(path, {**agent(), "own": (cell, randomised(cell))}, metadata={"epoch": 3})
    status, report, errors = run("inspect", path)
    assert (status, errors) == (0, [])
    assert report.startswith(f"{path}: safetensors, {os.path.getsize(path):,} bytes; saved by jaxrnn")
    assert lines_of(report, "model ")[0].startswith("model actor: stack(gru(input_size=3, hidden_size=4), readout(")
    assert lines_of(report, "model ")[1].startswith("model critic: scan(lstm(input_size=3, hidden_size=4), plan='plain")
    assert lines_of(report, "no model own: Spec.to_dict: elman's option activation is the function")
    assert words_of(report, "actor.0  ") == ["actor.0", "gru", "3", "->", "4", "96", "float32"]
    assert words_of(report, "actor.1  ")[:2] == ["actor.1", "readout"]
    assert words_of(report, "critic  ") == ["critic", "lstm", "3", "->", "4", "128", "float32"]
    assert words_of(report, "own.W_xh") == ["own.W_xh", "(3,", "4)", "float32", "12"]
    count = sum(a.size for _, p in agent().values() for a in jax.tree.leaves(p)) + sum(
        a.size for a in randomised(cell) if a is not None
    )
    assert report.endswith(f"\n{count} parameters in 11 tensors, float32\n")
    status, said, errors = run("convert", path, path.with_name("b.onnx"))
    assert (status, said, len(errors)) == (
        1,
        "",
        1,
    ) and "holds the models 'actor', 'critic', 'own'; name one" in errors[0]
