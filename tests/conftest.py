"""Two CPU devices for the mesh tests, the ``--full`` switch, float64 on request; processes share what they compile."""

import os
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)


def pytest_configure(config):
    """A program that one process has compiled, the others load: small ones, such as those of NumPy-like code, recur."""
    if not hasattr(config, "workerinput"):  # the process that starts the others, or the only one
        folder = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["COMPILED_BY_TESTS"] = folder.name
    jax.config.update("jax_compilation_cache_dir", os.environ["COMPILED_BY_TESTS"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the whole product of cases, not the pairwise choice")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture(scope="module")
def quick_to_compile():
    """For tests of what stands around the compiled programs: less time for the compiler, more for the programs."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def x64():
    """float64 for one test."""
    with jax.enable_x64(True):
        yield
