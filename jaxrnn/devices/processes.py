"""Several processes, on one host or many, as one program."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

import jax

from jaxrnn._arguments import checks_arguments


@checks_arguments
def join_processes(*, timeout: int = 60, heartbeat: int = 30) -> int:
    """Join the processes of this program, on one host or several, so that their devices make one mesh.

    To be called first, beside ``jr.devices.use_cpu_devices``, in every process. Where to find the others stands in the
    environment; what is found first is taken:

    1. ``JAX_COORDINATOR_ADDRESS`` (``host:port`` of process 0, a port that is free there), ``JAX_NUM_PROCESSES`` and
       ``JAX_PROCESS_ID`` (0, 1, …), all three.
    2. SLURM, within a step of several tasks (``srun -n 4 python …``): each task is a process. A batch script, or the
       shell of an interactive allocation, is no such step, whatever the number of tasks that it was given.
    3. Nothing: this process is alone, and nothing is done.

    On CPUs, JAX sends what the processes exchange through gloo, over TCP.

    Args:
        timeout: seconds to wait for the others, at the start and at the end. If one is still missing then, JAX ends
            this process (SIGABRT); a warning says before that who is waited for.
        heartbeat: seconds without a sign of life after which a process counts as dead. The others cannot go on without
            it: an exchange that it had a part in raises, and JAX ends them (SIGABRT), at once where process 0 died.

    Returns:
        The number of processes: 1 if this one is alone.

    Raises:
        ValueError: some of the three variables without the others, or with values that make no sense. RuntimeError:
            JAX has already started. TypeError, ValueError: seconds that are not positive ints.

    Note:
        Of several processes, JAX keeps SIGTERM to itself, as a notice to all of them that the job is about to end
        (``jax.experimental.multihost_utils.reached_preemption_sync_point``). A handler of your own has to be set
        after this call.

    Example:
        >>> import jaxrnn as jr
        >>> jr.devices.join_processes()
        1
    """
    if jax.distributed.is_initialized():
        return jax.process_count()
    address, count, index, method = _place_among_processes()
    if count == 1:
        return 1
    try:
        with _warn_while_waiting(f"join_processes: process {index} of {count}", address, timeout):
            jax.distributed.initialize(
                address,
                count,
                index,
                cluster_detection_method=method,
                initialization_timeout=int(timeout),
                shutdown_timeout_seconds=int(timeout),
                heartbeat_timeout_seconds=int(heartbeat),
            )
    except RuntimeError as error:
        if "must be called before" not in str(error):
            raise
        raise RuntimeError(
            f"join_processes: expected to be called before JAX starts, but this process, {index} of {count}, has "
            f"already used it; call it right after the imports, before any array, key or jax.devices() is made."
        ) from None
    return count


def _place_among_processes() -> tuple[str | None, int, int, str]:
    """``(address, count, index, JAX's method of detection)``; the address is None where JAX reads SLURM's."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if not given:
        # Of a job's variables, only this one is set by steps alone: SLURM_NTASKS stands in interactive shells, too.
        count = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
        return None, count, int(os.environ.get("SLURM_PROCID", 0)), "slurm"
    if missing := [name for name in names if name not in given]:
        raise ValueError(
            f"join_processes: expected {', '.join(names)} to be set together, but the environment has "
            f"{' and '.join(given)} without {' and '.join(missing)}; set {'it' if len(missing) == 1 else 'them'} too, "
            f"or none of the three for a process alone."
        )
    address, *numbers = (given[name] for name in names)
    if not address.rpartition(":")[2].isdigit():
        raise ValueError(
            f"join_processes: JAX_COORDINATOR_ADDRESS must be host:port of process 0, got {address!r}; give "
            f"{address.rstrip(':')}:1234, say, with a port that is free there."
        )
    if not all(number.isdigit() for number in numbers) or not int(numbers[1]) < int(numbers[0]):
        raise ValueError(
            f"join_processes: JAX_NUM_PROCESSES must be a number of processes and JAX_PROCESS_ID one of 0, 1 … below "
            f"it, got {numbers[0]!r} and {numbers[1]!r}; count the processes from 0."
        )
    return address, int(numbers[0]), int(numbers[1]), "deactivate"


@contextlib.contextmanager
def _warn_while_waiting(who: str, address: str | None, timeout: int) -> Iterator[None]:
    """Warn that this process waits, and where, before JAX ends it without saying so."""
    place = address or "the address that SLURM gives"
    words = "%s still waits for the others at %s, and will give up %d s after it started; are all of them running?"
    timer = threading.Timer(min(10, timeout / 2), logging.getLogger(__name__).warning, (words, who, place, timeout))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
