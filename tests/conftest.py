"""Two CPU devices for the mesh tests, the ``--full`` switch, float64 on request; processes share what they compile."""

import contextlib
import os
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)


def pytest_configure(config):
    """A program that one process has compiled, the others load: small ones, such as those of NumPy-like code, recur."""
    if "COMPILED_BY_TESTS" not in os.environ:  # the process that starts the others, or the only one
        folder = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["COMPILED_BY_TESTS"] = folder.name
    jax.config.update("jax_compilation_cache_dir", os.environ["COMPILED_BY_TESTS"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the whole product of cases, not the pairwise choice")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    first = {}  # the place of the first test of a case: the others follow it, with what it has compiled

    def place(numbered):
        number, item = numbered
        case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
        name = getattr(case, "name", None)
        return number if name is None else first.setdefault((item.path, name), number)

    items[:] = [item for _, item in sorted(enumerate(items), key=place)]


@contextlib.contextmanager
def hardly_optimised():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def quick_to_compile():
    """For tests of what stands around the compiled programs: less time for the compiler, more for the programs."""
    with hardly_optimised():
        yield


@pytest.fixture
def quick():
    """The same for one test."""
    with hardly_optimised():
        yield


@pytest.fixture
def x64():
    """float64 for one test."""
    with jax.enable_x64(True):
        yield
