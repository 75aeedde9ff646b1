"""No bad argument of a converter ends in an exception without a name to look for, the argument and the fix in it."""

import inspect
import re
from pathlib import Path

import jax
import pytest

for _name in ("equinox", "flax", "haiku", "keras", "onnx", "torch"):
    pytest.importorskip(_name)

import jaxrnn as jr  # noqa: E402
from tests.bad_values import bad_values  # noqa: E402
from tests.interop.comparing import tables  # noqa: E402
from tests.interop.faces import BAD, BY, CALLED, CALLS, FREE, RUNS, Row, functions, parameters_of, public, write_files  # noqa: E402

PAGE = "the converter's test, or of tests/interop/faces.py"
for _calls, _bad in zip(tables("CALLS"), tables("BAD"), strict=True):  # of converters that have them in their tests
    CALLS.update(_calls)
    BAD.update(_bad)
ERRORS = (TypeError, ValueError, OSError, RuntimeError)  # the last of arrays that were deleted
# A message says what is taken, or what to do.
FIX = re.compile(
    r"must|should|expected|known|needs|\bha(s|ve)\b|there (are|is)|"
    r"\b(pass|give|name|use|leave|choose|save|read|convert|cast|set|call|export|unpack|run|put|goes)\b",
    re.IGNORECASE,
)


def rows():
    for place, function in functions():
        for parameter in parameters_of(function):
            for index, bad in enumerate(bad_values(place, parameter, BAD, FREE, PAGE)):
                row = bad if isinstance(bad, Row) else Row(bad, "")
                yield pytest.param(place, function, parameter.name, row, id=f"{place}-{parameter.name}-{index}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


@pytest.mark.parametrize(("place", "function", "name", "row"), list(rows()))
def test_says_who_and_what(place, function, name, row, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ERRORS) as info:
        function(**{**CALLS[place], **row.others, name: row.bad})
    words, who = str(info.value), place.rpartition(".")[2]
    if isinstance(info.value, OSError):  # as the system says it: a file that is not there
        assert str(row.bad).partition("/")[0] in words
        return
    assert re.match(rf"(onnx\.)?({who}|{BY.get(place, who)})(: | .*: )", words), words
    said = [row.says] if row.says else [name, *CALLED.get(name, ()), *([row.bad] if isinstance(row.bad, str) else [])]
    assert any(one.lower() in words.lower() for one in said), words
    assert FIX.search(words), words
    assert Path(jr.__file__).parent in Path(info.traceback[-1].path).parents, info.traceback[-1]


def test_every_public_function_has_rows():
    missing = public() - CALLS.keys()
    assert not missing, f"add a call that is all right to CALLS in {PAGE}: {sorted(missing)}"


@pytest.mark.parametrize(("place", "function"), list(functions()))
def test_the_calls_are_all_right(place, function, folder, monkeypatch):
    monkeypatch.chdir(folder)
    if place in RUNS or place == "registry.Library.load":  # of a library that is not there
        inspect.signature(function).bind(**CALLS[place])
    else:
        function(**CALLS[place])


KEEP = ("linen_variables", "nnx_cell", "nnx_layer", "NnxCell", "NnxLayer")  # parameters as they are


@pytest.mark.parametrize(
    ("place", "function"),
    [pair for pair in functions() if "params" in CALLS[pair[0]] and pair[0].rpartition(".")[2] not in KEEP],
)
def test_parameters_without_a_value(place, function):
    """Inside ``jit`` nothing converts."""
    others = {name: value for name, value in CALLS[place].items() if name != "params"}
    name = re.escape(place.removeprefix("onnx.").rpartition(".")[2])
    message = rf"^(onnx\.)?{name}: \S+ is traced and has no value yet; convert outside of jit"
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(lambda params: function(**others, params=params), CALLS[place]["params"])
