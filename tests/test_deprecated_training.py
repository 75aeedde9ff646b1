"""The old names of jaxrnn.training work for one release more and warn with the new ones, where they are used."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn import training
from jaxrnn.training import batches, fitting, steps

MOVED = {
    (training, "Point"): "jaxrnn.training.BlockResult",
    (training, "no_best"): "jaxrnn.training.init_best",
    (training, "better"): "jaxrnn.training.update_best",
    (fitting, "Point"): "jaxrnn.training.history.BlockResult",
    (fitting, "patience"): "jaxrnn.training.stopping.patience",
    (steps, "no_best"): "jaxrnn.training.steps.init_best",
    (steps, "better"): "jaxrnn.training.steps.update_best",
    (batches, "padded"): "jaxrnn.training.padding.padded",
    (batches, "Padded"): "jaxrnn.training.padding.Padded",
    (batches, "prefetch"): "jaxrnn.training.prefetching.prefetch",
}


def block(state):
    return state + 1, {"loss": state}, {"loss": jnp.where(state == 1, 1, 0)}


def warns(message):
    return pytest.warns(DeprecationWarning, match=f"^{re.escape(message)}; the old name goes in jaxrnn 0.3.$")


@pytest.mark.parametrize("module, name", MOVED)
def test_moved_names(module, name):
    new = MOVED[module, name]
    with warns(f"{module.__name__}.{name} is now {new}") as caught:
        old = getattr(module, name)
    assert caught[0].filename == __file__
    assert old is getattr(training, new.rpartition(".")[2])


def test_a_name_that_never_was():
    for module in (training, batches):
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'Pont'"):
            _ = module.Pont


def test_the_warning_of_a_root_name_points_at_its_user():
    with warns("jaxrnn.ensemble is now jaxrnn.devices.ensemble") as caught:
        assert jr.ensemble is jr.devices.ensemble
    assert caught[0].filename == __file__


def test_renamed_arguments_of_fit():
    seen, options = [], {"steps": 4, "block_steps": 1, "nonfinite": "record"}
    start = jnp.zeros((), jnp.int32)
    with warns("fit(on_point=…) is now on_block=…") as caught:
        fitted = training.fit(block, start, **options, on_point=seen.append)
    assert caught[0].filename == __file__
    assert seen == fitted.history and len(seen) == 4
    with warns("fit(enough=…) is now stop_when=…"):
        fitted = training.fit(block, start, **options, enough=lambda history: len(history) == 3)
    assert int(fitted.state) == 3
    with pytest.raises(TypeError, match="fit: got stop_when and its old name enough; give stop_when alone"):
        training.fit(block, start, **options, stop_when=len, enough=len)


def test_renamed_fields():
    fitted = training.fit(block, jnp.zeros((), jnp.int32), steps=3, block_steps=1, nonfinite="record")
    with warns("Fitted.points is now Fitted.history") as caught:
        assert fitted.points is fitted.history
    assert caught[0].filename == __file__
    assert [int(result.nonfinite["loss"]) for result in fitted.history] == [0, 2, 0]
    with warns("BlockResult.lost is now BlockResult.nonfinite"):
        assert fitted.history[1].lost is fitted.history[1].nonfinite
    assert training.BlockResult(1, {"loss": np.array(1.0)}).nonfinite == {}
