"""Two CPU devices for the mesh tests, the ``--full`` switch, float64 on request."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the whole product of cases, not the pairwise choice")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture
def x64():
    """float64 for one test."""
    with jax.enable_x64(True):
        yield
