"""The command behind the tables of docs/parity.md: one model of each library, and that a wrong conversion shows."""

import os

import jax
import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")

from experiments.parity.__main__ import main
from experiments.parity.compare import compare
from experiments.parity.report import LIMITS, table, worst
from experiments.parity.sources import sources

ALL = list(sources())
FIRST = {library: make for library, make in reversed(ALL)}
MODULES = {"linen": "flax", "nnx": "flax"}

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("library", FIRST)
def test_one_of_each_library(library):
    pytest.importorskip("onnxruntime" if library == "onnx" else MODULES.get(library, library))
    dtype = "float32" if library == "onnx" else "float64"
    row = compare(FIRST[library], dtype)
    assert 0 <= worst(row) <= LIMITS[dtype]
    assert (row.gradients is None) == (library == "onnx")
    assert f"| {row.source.library} | {row.source.cell} | {row.source.options or '–'} | " in table([row])


@pytest.mark.parametrize("wrong", ["sign", "constant"])
def test_a_wrong_conversion_shows(wrong):
    """A weight with the wrong sign moves outputs; a bias that the conversion shifts moves nothing but them."""
    pytest.importorskip("torch")

    def make(draw):
        source = FIRST["torch"](draw)

        def read(weights):
            model, params = source.read(weights)
            return model, params._replace(W_hh=-params.W_hh) if wrong == "sign" else params._replace(b=params.b + 1e-6)

        return source._replace(read=read)

    row = compare(make, "float64")
    assert row.outputs > LIMITS["float64"] and row.gradients > LIMITS["float64"]


def test_gradients_alone_that_are_wrong_show():
    """Halved on their way back, with the outputs as they are."""
    pytest.importorskip("torch")

    @jax.custom_vjp
    def halved(a):
        return a

    halved.defvjp(lambda a: (a, None), lambda _, d: (d / 2,))

    def make(draw):
        source = FIRST["torch"](draw)

        def read(weights):
            model, params = source.read(weights)

            def apply(params, *args, **options):
                return model.apply(params._replace(W_xh=halved(params.W_xh)), *args, **options)

            return model._replace(apply=apply), params

        return source._replace(read=read)

    row = compare(make, "float64")
    assert row.outputs <= LIMITS["float64"] < 1e-3 < row.gradients


def test_the_command(capsys, tmp_path):
    pytest.importorskip("equinox")
    page = tmp_path / "parity.md"
    page.write_text("# Parity\n\n<!-- parity:begin -->\nold\n<!-- parity:end -->\n")
    assert main(["--only", "equinox", "--write", str(page)]) == 0
    said = capsys.readouterr().out
    assert said.count("| Equinox | ") == 3 and "nan" not in said
    assert page.read_text() == f"# Parity\n\n<!-- parity:begin -->\n{said}<!-- parity:end -->\n"
    with pytest.raises(SystemExit):
        main(["--write", str(tmp_path / "none.md")])
    assert "none.md" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--only", "caffe"])
    assert "unknown library caffe; known are equinox, haiku" in capsys.readouterr().err


def test_every_source_of_the_table_is_told_apart():
    def drawn(*shape):
        return np.zeros(shape, np.float32)

    pytest.importorskip("torch")
    names = [(s.library, s.cell, s.options) for s in (make(drawn) for library, make in ALL if library == "torch")]
    assert len(set(names)) == len(names) == 17
