"""The experiments' tests look at what is made of the programs' results, not at the compiler."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick(quick_to_compile):
    """Of each module."""
