"""Models with a spec are equal, hashed, copied and pickled by it; one with anything replaced is the user's own."""

import concurrent.futures
import copy
import functools
import multiprocessing
import pickle
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn import _spec
from tests import saved
from tests.cases import CASES, CELLS, ELSEWHERE, WRAPPERS, H, I

MODELS = {
    **{name: cell for name, cell in CELLS.items() if cell.spec is not None},
    **{case.name: case.layer for case in CASES if case.layer.spec is not None},
    **{f"saved, {name}": model for name, model in saved.MODELS.items()},
    **{kind: wrap(cell) for kind, (wrap, cell) in WRAPPERS.items() if kind in ELSEWHERE},
    "tbptt": jr.tbptt(jr.scan(jr.gru(I, H), plan=jr.Plan(hoist=True), checkpoint=jr.Budget(5)), window=4, stride=2),
    "parallel": jr.parallel(jr.gru(I, H), method="chunks", chunks=4, tol=1e-6, checkpoint=jr.Budget(5)),
    "residual layer": jr.residual(jr.bidirectional(jr.lstm(4, 2), jr.lstm(4, 2))),
    "functions": jr.bidirectional(jr.elman(I, H, bias_init=saved.randomised), jr.lstm(I, H), merge=max, run=jr.scan),
}


def kinds_in(spec):
    return {spec.kind}.union(*map(kinds_in, spec.children))


def test_the_list_has_every_kind():
    kinds = {kind for kind in _spec.FACTORIES if kind not in ("Plan", "Budget")}
    assert set().union(*(kinds_in(model.spec) for model in MODELS.values())) == kinds and WRAPPERS.keys() <= kinds


def has_names_alone(spec):
    """Whether pickle finds every function of the options, by its name: no lambda, and not jnp.cos."""
    try:
        pickle.dumps([value for _, value in spec.options if callable(value)])
    except (pickle.PicklingError, AttributeError):
        return False
    return all(map(has_names_alone, spec.children))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_models_with_a_spec_are_known_by_it(model):
    others = [jr.build(model.spec), copy.copy(model), copy.deepcopy(model)]
    if has_names_alone(model.spec):
        others.append(pickle.loads(pickle.dumps(model)))
    others.append(jax.tree.map(lambda a: a, model))  # as Equinox takes modules apart and puts them together
    for other in others:
        assert other == model and model == other and (other != model) is False and hash(other) == hash(model)
        assert other.spec == model.spec and type(other) is type(model)
    assert model != tuple(model) and tuple(model) != model and model != model.spec
    assert [other for other in MODELS.values() if other == model and other.spec != model.spec] == []
    assert (jr.scan(model) if isinstance(model, jr.Cell) else jr.tbptt(jr.scan(jr.gru(I, H)), window=9)) != model


def replaced(model):
    """``(field, model)`` with one field after the other replaced, in the ways in which that can be done."""
    affine, noise = (getattr(model, name, None) for name in ("affine", "noise"))
    refused = ("noise" if affine else "output", "affine" if noise else "")
    for place, name in enumerate(model._fields):
        old = model[place]
        if name == "spec":
            yield name, model._replace(spec=None)
            continue
        if old is None or not callable(old):
            if name not in refused:
                yield name, model._replace(**{name: 9})
            continue
        wrapper = functools.wraps(old)(lambda *args, old=old, **options: old(*args, **options))
        yield name, model._replace(**{name: wrapper})
        if affine and name in ("step", "affine", "output"):
            with pytest.raises(TypeError, match="step and affine were both given"):
                type(model)(**model._asdict() | {name: wrapper})
            continue
        yield name, type(model)(**model._asdict() | {name: wrapper})
        yield name, jax.tree.map(lambda a, old=old, new=wrapper: new if a is old else a, model)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_replaced_field_leaves_the_spec_behind(model):
    for name, other in replaced(model):
        assert other.spec is None, name
        assert other != model and model != other and (other == model) is False, name
        assert other == other._replace() and hash(other) == hash(other._replace()), name
        with pytest.raises((pickle.PicklingError, AttributeError)):  # its functions stand in no module
            pickle.dumps(other)
    assert model.spec is not None


def test_a_replaced_step_is_not_saved_as_the_old_one(tmp_path):
    cell = jr.gru(I, H)
    still = cell._replace(step=lambda params, h, x: (h, h))
    params = saved.randomised(cell)
    jr.save(tmp_path / "model.safetensors", still, params)
    with pytest.raises(ValueError, match=r"holds parameters without their model: it is a user cell, or holds one"):
        jr.load(tmp_path / "model.safetensors")
    assert jr.load(tmp_path / "model.safetensors", still)[0] is still
    for holds in (jr.leaky(still, rate=0.5), jr.scan(still), jr.stack(jr.dropout(0.1), still), jr.chain(still)):
        assert holds.spec is None
    with pytest.raises(TypeError, match=r"gates: user cell has no gates"):
        jr.gates(still._replace(gates=None), params, None, None)
    # The old functions are not the new cell's: nothing computes by them.
    np.testing.assert_array_equal(jr.scan(still).apply(params, jnp.ones((3, I)))[1], np.zeros((3, H)))


def of_module(key):
    return ()


def test_cells_of_ones_own_are_known_by_their_functions():
    step = itemgetter(slice(1, None))
    cell = jr.Cell(of_module, saved.randomised, step, x_ndim={"a": 1})
    assert cell == jr.Cell(of_module, saved.randomised, step, x_ndim={"a": 1})
    assert hash(cell) == hash(cell._replace(x_ndim={"b": 1})) and cell != cell._replace(x_ndim={"b": 1})
    assert cell != cell._replace(step=itemgetter(0)) and cell != jr.Layer(*cell[:3])
    again = pickle.loads(pickle.dumps(cell._replace(step=saved.randomised)))  # functions of modules, by their names
    assert again == cell._replace(step=saved.randomised) and again.x_ndim == {"a": 1}


def test_what_specs_tell_apart():
    cell = jr.gru(I, H)
    scans = {jr.scan(cell, checkpoint=True), jr.scan(cell, checkpoint=1), jr.scan(cell), jr.scan(cell, checkpoint=2)}
    assert len(scans) == 4  # True is not 1: a segment of about √T steps, and one of one
    assert jr.Spec("gru") != ("gru", (), ()) and jr.Spec("gru") == jr.Spec("gru", ())
    named = jr.gru(I, H, param_dtype="float32", reset="".join(["be", "fore"]), learned_carry=False, bias=True)
    assert named == cell and named.spec.options == cell.spec.options  # defaults, written in full
    clips = [jr.clip_state(cell, max_value=value) for value in (2.0, np.float32(2), jnp.float32(2), np.array(2.0))]
    assert len(set(clips)) == 1
    first, second = (functools.partial(jnp.clip, min=-1) for _ in range(2))  # partial applications of the same
    assert jr.elman(I, H, activation=first) == jr.elman(I, H, activation=second)
    assert jr.elman(I, H, activation=first) != jr.elman(I, H, activation=functools.partial(jnp.clip, min=-2))

    def act(a):
        return jnp.tanh(a)

    own = jr.elman(I, H, activation=act)
    assert own == jr.elman(I, H, activation=act) != jr.elman(I, H, activation=lambda a: jnp.tanh(a))
    with pytest.raises((pickle.PicklingError, AttributeError), match="act"):  # no module has it
        pickle.dumps(own)


class Unhashable:
    __hash__ = None

    def __call__(self, a):
        return a


def test_an_option_that_cannot_be_hashed_is_told():
    cell = jr.elman(I, H, activation=Unhashable())
    with pytest.raises(TypeError, match=r"Spec: an option of elman cannot be hashed: unhashable type: 'Unhashable'; g"):
        hash(cell)
    assert cell == cell and cell != jr.elman(I, H)


def test_static_arguments_of_jit_are_traced_once():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(cell, x):
        traced.append(cell)
        return x

    for _ in range(3):
        run(jr.gru(I, H), 1.0)
        run(jr.scan(jr.leaky(jr.gru(I, H), rate=0.5), reverse=True), 1.0)
    assert len(traced) == 2
    run(jr.gru(I, H)._replace(step=of_module), 1.0)
    assert len(traced) == 3


def test_a_model_goes_to_another_process(tmp_path):
    model, path = jr.stack(jr.leaky(jr.gru(I, H), rate=0.5), jr.readout(H, 2)), tmp_path / "model.safetensors"
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(jr.save, path, model, jax.tree.map(np.asarray, saved.randomised(model))).result(timeout=120)
    assert jr.load(path)[0] == model
