"""Every public function of every converter has an example, and it runs."""

import doctest
import os

import pytest

from jaxrnn.interop.registry import converters

os.environ.setdefault("KERAS_BACKEND", "jax")

NAMES = [(converter, name) for converter, module in converters().items() for name in module.__all__]


@pytest.mark.parametrize(("converter", "name"), NAMES, ids=[".".join(pair) for pair in NAMES])
def test_the_example_runs(converter, name):
    module = converters()[converter]
    pytest.importorskip(module.LIBRARY.module)
    member = getattr(module, name)
    tests = doctest.DocTestFinder(recurse=False).find(member, name, globs={})
    examples = [example for test in tests for example in test.examples]
    assert examples or isinstance(member, type), f"give {name} of jaxrnn.interop.{converter} an Example"
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0
