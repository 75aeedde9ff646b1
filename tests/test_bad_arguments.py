"""No bad argument of a public call ends in an exception without a name to look for and the argument in it."""

import inspect
import re
from pathlib import Path

import pytest

import jaxrnn as jr
from tests.bad_values import bad_values
from tests.faces import CALLS, functions
from tests.test_api_pages import PAGE_OF, names_of

ERRORS = (TypeError, ValueError, OSError)
# How messages call an argument, where not by its name.
CALLED = {
    "model": ("a Cell or a Layer",),
    "members": ("member",),
    "cells": ("member",),
    "inner": ("member",),
    "sequences": ("sequence",),
    "x": ("expected floating-point inputs",),
    "xs": ("expected floating-point inputs", "expected x of shape"),
    "spec": ("build: ",),
    "carry": ("one for each state",),
}


def rows():
    for place, function in functions():
        for parameter in inspect.signature(function).parameters.values():
            for index, bad in enumerate(bad_values(place, parameter)):
                yield pytest.param(place, function, parameter, bad, id=f"{place}-{parameter.name}-{index}")


@pytest.mark.parametrize(("place", "function", "parameter", "bad"), list(rows()))
def test_says_who_and_what(place, function, parameter, bad, tmp_path, monkeypatch):
    """Who: the function, or the model that it was given. What: the argument."""
    monkeypatch.chdir(tmp_path)
    given = CALLS[place] | {parameter.name: bad}
    several = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.VAR_POSITIONAL]
    first = given.pop(several[0], ()) if several else ()
    with pytest.raises(ERRORS) as info:
        function(*(first if isinstance(first, tuple) else (first,)), **given)
    words, name = str(info.value), place.rpartition(".")[2]
    if isinstance(info.value, OSError):  # as the system says it: a file that is not there
        assert bad in words
        return
    assert re.search(rf"({name}|gru|scan\(gru\)|{name}\(gru\)|Spec.from_dict|training.loop): ", words), words
    assert parameter.name.lower() in words.lower() or any(
        called in words for called in CALLED.get(parameter.name, ())
    ), words
    assert Path(jr.__file__).parent in Path(info.traceback[-1].path).parents, info.traceback[-1]


def test_every_public_function_has_rows():
    expected = {
        name if face == "jaxrnn" else f"{face.removeprefix('jaxrnn.')}.{name}"
        for face in PAGE_OF
        for name in names_of(face)
        if inspect.isfunction(getattr(jr if face == "jaxrnn" else getattr(jr, face.partition(".")[2]), name))
    }
    missing = expected - CALLS.keys()
    assert not missing, f"add a call that is all right to CALLS in tests/faces.py: {sorted(missing)}"


@pytest.mark.parametrize(("place", "function"), list(functions()))
def test_the_calls_are_all_right(place, function):
    inspect.signature(function).bind(
        **{n: v for n, v in CALLS[place].items() if place not in ("stack", "chain", "branch")}
    )
