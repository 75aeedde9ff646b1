"""Two CPU devices for the mesh tests, the ``--full`` switch, float64 on request; less time for the compiler."""

import collections
import gc
import math
import os
import tempfile
from pathlib import Path

import jax
import pytest

from jaxrnn.planning.constants import constants
from tests.evaluating import evaluated

jax.config.update("jax_num_cpu_devices", 2)
os.environ["JAXRNN_TUNING"] = "off"  # plans choose by the defaults, whatever whoever runs the tests has tuned


def pytest_configure(config):
    """What one process has compiled, others load: pytest's workers, and those that tests start, by the environment."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the process that starts the others, or the only one
        folder = tempfile.TemporaryDirectory(prefix="compiled-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if jax.__version__.startswith("0.10.") and not config.getoption("--full"):  # later releases know no such flag
        # Half the time of the compiler. test_wheel.py runs the doctor, which compares with NumPy, as users compile.
        quick = "--xla_cpu_use_fusion_emitters=false"
        if quick not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Code for the processor is optimised under ``--full``, and where a test asks for it, but under ``--product``."""
    asked = item.get_closest_marker("optimised") and not item.config.getoption("--product")
    optimised = item.config.getoption("--full") or asked
    jax.config.update("jax_disable_most_optimizations", not optimised)
    return (yield)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the whole product of cases, not the pairwise choice")
    parser.addoption("--product", action="store_true", help="the same, compiled as quickly as by default")
    parser.addoption("--data", action="store_true", help="run the tests that read data packages: make test-data")
    parser.addoption("--models", type=int, help="how many models test_random_models.py builds; 16, or 2,000 if full")


def everything(config):
    return config.getoption("--full") or config.getoption("--product")


def pytest_generate_tests(metafunc):
    """Parameters that only ``--full`` runs make no tests otherwise: they are most of the product."""
    if not everything(metafunc.config):
        for mark in metafunc.definition.iter_markers("parametrize"):
            values = mark.args[1] if len(mark.args) > 1 else None
            if isinstance(values, list):
                kept = [v for v in values if not any(m.name == "full" for m in getattr(v, "marks", ()))]
                values[:] = kept or values


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--data"):
        of_packages = [item for item in items if item.get_closest_marker("data")]
        config.hook.pytest_deselected(items=of_packages)
        items[:] = [item for item in items if not item.get_closest_marker("data")]
    if not everything(config):
        from tests.turns import share  # after the number of devices is set

        left_out = {item for item in items if item.get_closest_marker("full")}
        if not config.getoption("keyword"):
            asked = {Path(argument.split("::")[0]).name for argument in config.args}
            number = collections.Counter()
            for item in items:
                if item not in left_out and item.path.name not in asked:
                    if number[item.path] % share(item.path):
                        left_out.add(item)
                    number[item.path] += 1
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    first = {}  # the place of the first test of a case: the others follow it, with what it has compiled

    def place(numbered):
        number, item = numbered
        case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
        name = getattr(case, "name", None)
        return number if name is None else first.setdefault((item.path, name), number)

    items[:] = [item for _, item in sorted(enumerate(items), key=place)]


def pytest_collection_finish():
    """Traced programs are many small objects that stay: the collector need not walk all of them again and again."""
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def collected():
    """What is left when a file of tests begins is not walked again: some tests ask for a whole collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def traced(request):
    """Around a function: its program, run by NumPy, which takes no compiler; by XLA under ``--full``."""
    return jax.jit if request.config.getoption("--full") else evaluated


@pytest.fixture
def many_rows(monkeypatch):
    """Small runs are planned as large ones are; test_one_kernel.py has the plans of few rows."""
    monkeypatch.setattr("jaxrnn.planning._rules.makes_one_kernel", lambda weights, rows: False)
    monkeypatch.setattr(
        "jaxrnn.planning._rules.constants", lambda: constants()._replace(stack_up_to=0, spare=-math.inf)
    )


@pytest.fixture
def many_weights(many_rows, monkeypatch):
    """Besides, few weights count as many: their gradients are contracted, from 16 steps on in parts of the loop."""
    name, fewer = "jaxrnn.planning._rules.constants", {"stack_up_to": 0, "contract_from": 0, "spare": -math.inf}
    monkeypatch.setattr(name, lambda: constants()._replace(**fewer))


@pytest.fixture
def x64():
    """float64 for one test."""
    with jax.enable_x64(True):
        yield
