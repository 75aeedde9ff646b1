"""Batches made, and moved to where they are used, in a thread of their own while the training runs."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from jaxrnn._arguments import check_argument, checks_arguments

Item = TypeVar("Item")


@checks_arguments
def prefetch(items: Iterable[Item], *, size: int = 2, put: Callable[[Item], Any] = jax.device_put) -> Iterator[Any]:
    """Batches made, and moved to where they are used, ahead of their use.

    One thread takes the items, in order, and puts them. JAX returns from a jitted step long before its result is there,
    on a CPU too, so a loop that never waits for a result overlaps with the loading of data by itself. A loop that does
    (it fetches the loss, looks for NaN, saves) leaves the device idle while the next batch is made, unless a thread
    makes it: with loading and step of 6 ms each on a CPU, 12 ms a step become 6–7.

    Args:
        items: such as ``map(at, range(start, steps))`` with ``at`` from ``training.padded``. They are made in the
            thread; what is slow there should be NumPy, files and the like, which run beside Python.
        size: how many items may be ahead of the one that was handed out last.
        put: what is done with each in the thread; for a mesh ``lambda batch: jr.devices.shard_batch(batch, mesh,
            batch_axis=Padded(1, 0, 0))``. The thread has its caller's x64 mode and default device; name a mesh.

    Returns:
        An iterator of what ``put`` returned. It starts when first asked. What goes wrong with an item is raised in its
        place. ``close()``, the end of a loop that nothing else refers to it from, or an error end the thread; by then
        up to ``size`` further items may have been taken, so go on from a step, not from what is left of ``items``.

    Raises:
        ValueError, TypeError: a size below 1; items that are not iterable; put that is no function; of the default
            ``put``, in the place of the item: an integer of NumPy's that JAX's dtype cannot hold (its 64 bits are off).

    Example:
        >>> import numpy as np
        >>> from jaxrnn import training
        >>> [float(x.sum()) for x in training.prefetch(np.full(2, n) for n in range(3))]
        [0.0, 2.0, 4.0]
    """
    if put is jax.device_put:
        put = _put
    config: Any = jax.config  # options are attributes, of which its type knows nothing
    # A thread would start from the defaults.
    return _ahead(iter(items), int(size), put, config.jax_enable_x64, config.jax_default_device)


def _put(item: Any) -> Any:
    check_argument("training.prefetch", "items[…]", item, "PyTree", {})
    return jax.device_put(item)


def _ahead(items, size, put, x64, device):
    end = object()

    def one():
        with jax.enable_x64(x64), jax.default_device(device):
            item = next(items, end)
            return item if item is end else put(item)

    # Not a daemon: one that is still inside JAX when Python ends would crash; a pool's thread is waited for.
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    ahead: deque[Future[Any]] = deque()
    stop = weakref.finalize(ahead, pool.shutdown, cancel_futures=True)  # where Python ends too, in good time
    try:
        ahead.extend(pool.submit(one) for _ in range(size))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(one))
            yield item
    finally:
        stop()
