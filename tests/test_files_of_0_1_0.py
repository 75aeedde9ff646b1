"""Files that 0.1.0 wrote load, and compute what they computed there: every cell, wrapper and combination."""

import pathlib

import jax
import numpy as np
import pytest

import jaxrnn as jr

FOLDER = pathlib.Path(__file__).parent / "fixtures" / "saved_by_0_1_0"
FILES = sorted(path.stem for path in FOLDER.glob("*.npz"))


def test_the_files_are_there():
    assert FILES == ["combined", "conv_lstm", "embedding", "every_cell", "every_wrapper"]


@pytest.mark.parametrize("name", FILES)
def test_it_computes_the_same(name):
    """``xs`` and ``ys`` are those of the version that wrote the file."""
    layer, params, _ = jr.load(FOLDER / f"{name}.safetensors")
    with np.load(FOLDER / f"{name}.npz") as kept:
        xs, ys = kept["xs"], kept["ys"]
    # Five steps of up to nine layers in float32, which another version of the compiler may sum in another order: some
    # tens of roundings of 6e-8, of outputs near 1.
    np.testing.assert_allclose(jax.jit(layer.apply)(params, xs)[1], ys, rtol=0, atol=2e-6)


def test_a_cell_is_a_cell_again():
    cell, params, _ = jr.load(FOLDER / "cell.safetensors")
    assert isinstance(cell, jr.Cell) and cell.spec == jr.gru(2, 3).spec
    assert [a.shape for a in jax.tree.leaves(params)] == [(2, 9), (3, 9), (9,)]
