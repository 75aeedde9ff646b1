"""training.prefetch: ahead by so many items, errors in their place, no thread left behind."""

import itertools
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn.training import prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("size", [1, 3])
def test_prefetch_is_ahead_by_size_and_no_more(size):
    taken = [threading.Event() for _ in range(10)]

    def items():
        for n in range(10):
            taken[n].set()
            yield n

    ahead = prefetch(items(), size=size, put=lambda n: (n, threading.current_thread().name))
    assert not taken[0].is_set() and not threads()
    for n in range(10):
        item, name = next(ahead)
        assert item == n and name.startswith("prefetch")
        assert all(event.wait(10) for event in taken[: n + size + 1])  # while this loop does something else
        assert not any(event.is_set() for event in taken[n + size + 1 :])
    assert next(ahead, None) is None and not threads()


def test_prefetch_raises_in_its_place_and_ends():
    def items(bad):
        for n in range(5):
            if n == bad:
                raise OSError(f"file {n}")
            yield n

    for ahead in (prefetch(items(2)), prefetch(range(5), put=lambda n: n if n != 2 else items(0).__next__())):
        assert [int(next(ahead)), int(next(ahead))] == [0, 1]
        with pytest.raises(OSError, match="file") as caught:
            next(ahead)
        assert not threads() and next(ahead, None) is None
        del caught  # until here its traceback has kept alive all that there was


def test_prefetch_stops_when_its_loop_does():
    taken = []
    source = (taken.append(n) or n for n in itertools.count())
    for n in prefetch(source, size=2):
        if n == 3:
            break
    del n
    assert not threads() and len(taken) <= 6
    count = len(taken)
    assert next(source) == count and taken[-1] == count  # nobody else takes from it any more
    ahead = prefetch(itertools.count())
    next(ahead)
    ahead.close()
    assert not threads()


def test_prefetch_lets_python_end():
    """In the middle of its items, and silently."""
    code = "import itertools, jaxrnn.training as t; ahead = t.prefetch(itertools.count()); print(next(ahead))"
    options = {"env": {**os.environ, "JAX_PLATFORMS": "cpu"}, "capture_output": True, "text": True, "timeout": 100}
    ended = subprocess.run([sys.executable, "-c", code], **options)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("0\n", "", 0)


def test_prefetch_puts_on_the_device_in_the_mode_of_its_caller(x64):
    device = jax.devices()[1]
    with jax.default_device(device):
        ahead = prefetch([{"x": np.arange(2.0)}])
    (item,) = ahead
    assert item["x"].dtype == jnp.float64 and item["x"].devices() == {device}


def test_prefetch_refuses_what_jax_would_cut():
    """Tokens in int64, as NumPy has them, whose low half JAX would keep while its 64 bits are off."""
    fits, wide = np.array([2**31 - 1, -(2**31)]), np.array([3, 2**40])
    batches = prefetch([{"tokens": fits}, {"tokens": wide}])
    assert next(batches)["tokens"].tolist() == fits.tolist()
    said = r"training\.prefetch: items\[…\]\['tokens'\] holds 1099511627776 in int64, which JAX makes int32, too narrow"
    with pytest.raises(ValueError, match=said):
        next(batches)
    for item, error in ((2**40, ValueError), (2**70, ValueError), ("x", TypeError), (np.array(["x"]), TypeError)):
        with pytest.raises(error, match=r"training\.prefetch: items\[…\] (holds|must be an array)"):
            next(prefetch([item]))
    with jax.enable_x64(True):
        assert next(prefetch([wide])).tolist() == wide.tolist()
    assert next(prefetch([wide], put=lambda item: item)) is wide  # what one's own put does is one's own
