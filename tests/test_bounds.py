"""What a file says of sizes is compared with the file, before memory or time is spent on it."""

import functools
import json
import time
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from experiments.runner import predict, sweep
from experiments.runner.config import ConfigError
from experiments.runner.study import Predictor
from jaxrnn._spec import Spec
from jaxrnn.training import checkpoints
from jaxrnn.training.records import Records
from tests.cases import WRAPPERS
from tests.commands import run_command
from tests.foreign_bytes import BEYOND, LONG_NPY_HEADER, inflating, keras_zip, nested, npy
from tests.saved import MODELS, contents, randomised, saved, with_text, write

DEEP = "[" * 10_000 + "]" * 10_000  # JSON


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# ---- specs ---------------------------------------------------------------------------------------


SAID = {
    "of a billion units": r"W_hh should be float32 \(1000000000, 1000000000\), got float32 \(2, 2\)",
    "of more units than numbers can count": "cannot be rebuilt: elman: hidden_size must be at most 2,147,483,647",
    "of more cells than tensors": "it has 4,000 cells with parameters, but the file has 3 tensors for them",
    "of too many members": "the spec has more than 4,096 members; build such a model in code",
    "nested too deep": "the spec is nested deeper than 64; build such a model in code",
    "of lists nested too deep": "the spec is nested deeper than 64",
    "of no kind": "cannot be rebuilt: .*expected a Cell or a Layer, got Plan",
}


@pytest.mark.parametrize("what", BEYOND)
def test_a_spec_beyond_the_file(what, path, capsys):
    header, data = saved(path, jr.elman(1, 2))
    write(path, with_text(header, spec=BEYOND[what]), data)
    started = time.process_time()
    with pytest.raises(ValueError, match=rf"^load: .*'.*model\.safetensors'.*{SAID[what]}"):
        jr.load(path)
    status, said, errors = run_command(capsys, "inspect", path)
    assert (status, said, len(errors)) == (1, "", 1) and errors[0].startswith("inspect: ")
    assert time.process_time() - started < 5  # the four thousand cells alone would take minutes


def enlarged(spec, size):
    """The spec as JSON has it with each of its numbers in turn so large, at every depth."""
    text = json.dumps(spec.to_dict())

    def places(at, way):
        if isinstance(at, dict | list):
            for key in at if isinstance(at, dict) else range(len(at)):
                yield from places(at[key], (*way, key))
        elif isinstance(at, int | float) and not isinstance(at, bool):
            yield way

    for *way, last in places(json.loads(text), ()):
        other = json.loads(text)
        functools.reduce(lambda at, key: at[key], way, other)[last] = size
        yield other


OTHERS = {
    "projection": jr.lstm(2, 3, projection_size=2, T_max=9, learned_carry=True),
    "field": jr.conv_lstm(2, 3, spatial_shape=(4, 4), peephole=True),
    "plan": jr.scan(jr.peephole_lstm(2, 3, peephole="full"), plan=jr.Plan(hoist=False), unroll=3, checkpoint=4),
    "window": jr.tbptt(jr.scan(jr.mgu(2, 3)), window=3, stride=2),
    "wrapped": jr.normalized(jr.cifg_lstm(2, 3)),
}


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_every_number_of_a_spec_may_be_huge(name, path):
    """Its size or any option: the file is refused, or loads with the arrays that it has."""
    model = {**MODELS, **OTHERS}[name]
    params = randomised(model)
    header, data = saved(path, model)
    for other in (other for size in (10**9, 10**30) for other in enlarged(model.spec, size)):
        write(path, with_text(header, spec=other), data)
        try:
            loaded = jr.load(path)[1]
        except ValueError as error:
            assert str(error).startswith("load: ")
        else:
            assert jax.tree.map(jnp.shape, loaded) == jax.tree.map(jnp.shape, params)


def test_the_bounds_of_specs():
    assert Spec.from_dict(nested(63)) == jr.build(nested(63)).spec
    with pytest.raises(ValueError, match=r"^Spec\.from_dict: the spec is nested deeper than 64"):
        Spec.from_dict(nested(64))
    for depth in (64, 100_000):  # lists in an option; the second would exhaust Python's stack
        value = functools.reduce(lambda inner, _: [inner], range(depth), 1)
        with pytest.raises(ValueError, match=r"^Spec\.from_dict: the spec is nested deeper than 64"):
            jr.build({"kind": "lstm", "options": {"input_size": value}})
        with pytest.raises(ValueError, match=r"^Spec\.from_dict: expected a list of specs as the children of 'stack'"):
            jr.build({"kind": "stack", "children": value})
        with pytest.raises(ValueError, match=r"^Spec\.from_dict: expected a dict with the keys kind"):
            jr.build(value)
    drop = jr.dropout(0.1).spec.to_dict()
    assert len(Spec.from_dict({"kind": "stack", "children": [drop] * 4095}).children) == 4095
    with pytest.raises(ValueError, match=r"^Spec\.from_dict: the spec has more than 4,096 members"):
        Spec.from_dict({"kind": "stack", "children": [drop] * 4096})
    with pytest.raises(ValueError, match="more than 4,096 members"):  # a tree of pairs, 12 deep
        Spec.from_dict(functools.reduce(lambda child, _: {"kind": "chain", "children": [child] * 2}, range(12), drop))
    for children in (3, "abc", [3], {"kind": "lstm"}):
        with pytest.raises(ValueError, match="expected a list of specs as the children of 'stack'"):
            Spec.from_dict({"kind": "stack", "children": children})


def test_a_model_beyond_the_bounds_is_saved_as_a_users_own(path):
    model = functools.reduce(lambda inner, _: jr.residual(inner), range(70), jr.elman(2, 2))
    with pytest.warns(UserWarning, match="holds parameters without their model: .*nested deeper than 64"):
        jr.save(path, model, randomised(model))
    assert jr.load(path, model)[0] is model


WAYS = {name: wrap for name, (wrap, _) in WRAPPERS.items()}
WAYS |= {"residual": jr.residual, "chain": jr.chain, "stack": jr.stack, "tbptt": functools.partial(jr.tbptt, window=2)}


@pytest.mark.parametrize("name", WAYS)
def test_what_is_wrapped_is_not_called_twice_at_each_level(name):
    """Else 64 wrappers, which a file may hold, would call it 2^64 times."""
    gru, calls = jr.gru(3, 3), []

    def counted(key):
        calls.append(key)
        return gru.init(key)

    cell = gru._replace(init=counted, spec=None)
    model = functools.reduce(lambda inner, _: WAYS[name](inner), range(12), cell)
    jax.eval_shape(lambda key: model.init(key), jax.random.key(0))
    assert 1 <= len(calls) <= 30


# ---- JSON ----------------------------------------------------------------------------------------


def test_nested_json(tmp_path, path):
    header, data = saved(path, jr.elman(1, 2))
    for text in (DEEP, f'{{"format": 1, "metadata": {{"a": {DEEP}}}}}', f'{{"format": 1, "spec": {DEEP}}}'):
        write(path, {**header, "__metadata__": {"jaxrnn": text}}, data)
        with pytest.raises(
            ValueError, match=r"^load: jaxrnn's part of the metadata in .* is damaged: maximum recursion"
        ):
            jr.load(path)
    (tmp_path / "rows.jsonl").write_text(f"{DEEP}\n")
    with pytest.raises(checkpoints.CheckpointError, match="expected a row in JSON"):
        list(Records(tmp_path / "rows.jsonl").rows())
    note = tmp_path / "checkpoints" / "3" / "note"
    note.mkdir(parents=True)
    (note / "metadata").write_text(DEEP)
    (note.parent / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(checkpoints.CheckpointError, match="damaged, or not a checkpoint of jaxrnn"):
        checkpoints.note(tmp_path / "checkpoints")
    (tmp_path / "sweep.json").write_text(f'{{"grid": {DEEP}}}')
    with pytest.raises(ConfigError, match="not the directory of a sweep"):
        sweep.stored_grid(tmp_path)
    asked = Predictor(lambda: (np.zeros((2, 1, 3)), None), None, None, jr.elman(3, 2))
    with pytest.raises(ConfigError, match="line 1: expected JSON, such as"):
        list(predict.step_by_step(asked, randomised(jr.elman(3, 2)), [DEEP]))


# ---- arrays --------------------------------------------------------------------------------------


ARCHIVE = keras_zip(b"{}", zipfile.ZIP_STORED)
VERSION = ARCHIVE.find(b"PK\x01\x02") + 6  # what reads the first entry
FEATURES = np.arange(12, dtype=np.float32).reshape(2, 2, 3)


@pytest.mark.parametrize(
    "raw",
    [
        npy("<f4", (10**12, 1, 3), bytes(12)),
        npy("<f4", (2**31, 1, 3), bytes(12)),
        npy("<f4", (10**30, 1, 3), bytes(12)),
        npy("<f4", (2, 1, 3), bytes(23)),
        npy("|O", (2, 1, 3), b"a pickle"),
        LONG_NPY_HEADER,
        inflating(),
        ARCHIVE[:-9],
        ARCHIVE[:VERSION] + b"\x63" + ARCHIVE[VERSION + 1 :],
        b"",
    ],
    ids=[
        *("terabytes", "gigabytes", "beyond 64 bits", "cut short", "objects", "header", "archive"),
        *("archive cut short", "archive of a later version", "empty"),
    ],
)
def test_an_array_that_its_file_does_not_hold(raw, tmp_path):
    """Of ``experiments predict --input``, as it is mapped into memory; a sound one is read."""
    asked = Predictor(lambda: (FEATURES, None), lambda params, xs: xs.sum(0), lambda y, truth: str(y.tolist()))
    (tmp_path / "x.npy").write_bytes(npy("<f4", (2, 2, 3), FEATURES.tobytes()))
    assert list(predict.of_file(asked, (), tmp_path / "x.npy", None)) == [
        "0: [6.0, 8.0, 10.0]",
        "1: [12.0, 14.0, 16.0]",
    ]
    (tmp_path / "x.npy").write_bytes(raw)
    tracemalloc.start()
    with pytest.raises(ConfigError, match=r"^--input: .*x\.npy: (not a readable \.npy file|expected an array float32)"):
        list(predict.of_file(asked, (), tmp_path / "x.npy", None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20 or raw == LONG_NPY_HEADER  # Python asks for so much, and reads what there is


# ---- safetensors ---------------------------------------------------------------------------------


def test_tensors_without_numbers_may_have_any_shape(path):
    """No bytes are theirs, so the file says nothing of their sizes: they must be those of the model."""
    header, data = saved(path, jr.elman(1, 2))
    header["W_xh"] = {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [0, 0]}
    write(path, header, data)
    with pytest.raises(ValueError, match=r"^load: '.*model\.safetensors'"):
        jr.load(path)
    assert contents(path)[0]["W_xh"]["shape"] == [0, 2**40]
