"""When a training stops early, and what of its best block is kept: by one measure, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import PyTree
from jaxrnn._checks import nearest
from jaxrnn.training.history import BlockResult
from jaxrnn.training.steps import Best


class Patience(NamedTuple):
    """What ``training.patience`` makes: when to stop, and what ``training.fit`` keeps by the same measure."""

    measure: str
    blocks: int
    lower: bool
    keep: Callable[[PyTree], PyTree] | None

    def __call__(self, history: Sequence[BlockResult]) -> bool:
        """Whether no member has had a better measure for so many blocks."""
        return bool((len(history) - 1 - self._losses(history).argmin(0) >= self.blocks).all())

    def _losses(self, history: Sequence[BlockResult]) -> np.ndarray:
        """(blocks,) or (blocks, N): the measure, small where it is good, infinite where it is not finite."""
        known = history[-1].values
        if self.measure not in known:
            raise ValueError(
                f"training.patience: there is no measure {self.measure!r}; the block gives {', '.join(known)}"
                + nearest(self.measure, known)
            )
        shape = np.shape(known[self.measure])
        # What a resumed training measures newly was not measured before.
        measured = [np.broadcast_to(result.values.get(self.measure, np.nan), shape) for result in history]
        values = np.stack(measured).astype(float)
        return np.where(np.isfinite(values), values if self.lower else -values, np.inf)

    def kept(
        self, state: PyTree, members: int | None, before: PyTree = None, history: Sequence[BlockResult] = ()
    ) -> PyTree:
        """What is kept: before the first block, or after the last of the history; of each of N members its own."""
        if self.keep is None:
            return None
        new = self.keep(state)
        arrays = jax.tree.leaves(new)
        if not arrays or not all(isinstance(a, jax.Array) for a in arrays):
            raise TypeError(
                "training.patience: keep must give arrays of the state, as lambda state: state.params does; got "
                + (", ".join(sorted({type(a).__name__ for a in arrays})) or "none")
                + "."
            )
        lead = () if members is None else (members,)
        if any(a.shape[:1] != lead for a in arrays if members is not None):
            raise ValueError(
                f"training.patience: there are {members} labels, one for each member, but what keep gives has the "
                f"shapes {', '.join(str(a.shape) for a in arrays)}; each must lead with {members}."
            )
        if not history:
            return new
        losses = self._losses(history)
        if losses.shape[1:] != lead:
            raise ValueError(
                f"training.patience: the measure {self.measure!r} has the shape {losses.shape[1:]}, expected {lead} to "
                f"keep the best by it; give training.fit labels, one for each member, or measure a number."
            )
        won = (losses[-1] < np.inf) & (losses.argmin(0) == len(history) - 1)  # strictly better than all before
        if won.all() or not won.any():
            return new if won.all() else before
        return _of_each(won, new, before)

    def best(self, history: Sequence[BlockResult], kept: PyTree) -> Best | None:
        """What was kept, with its measure and step, () or (N,); None where nothing was to be kept."""
        if self.keep is None:
            return None
        losses = self._losses(history)
        value, block = losses.min(0), losses.argmin(0)
        step = np.array([result.step for result in history], np.int32)[block]
        return Best(value if self.lower else -value, np.where(value < np.inf, step, 0), kept)


@jax.jit
def _of_each(won: np.ndarray, new: PyTree, before: PyTree) -> PyTree:
    """Of each member (N,) the new arrays or those before, all of them (N, …)."""
    return jax.tree.map(lambda a, b: jnp.where(won.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, before)


@checks_arguments(who="training.patience")
def patience(
    measure: str, blocks: int, *, lower: bool = True, keep: Callable[[PyTree], PyTree] | None = None
) -> Patience:
    """Early stopping: a ``stop_when`` that is true once no member has had a better measure for so many blocks.

    Args:
        measure: the name of a measure.
        blocks: how many blocks without a new best value; what is not finite is none.
        lower: whether small values are good.
        keep: what of the state ``training.fit`` keeps of the block whose measure was the best, of each member its own:
            ``lambda state: state.params``. It is saved with the state and comes back as ``Fitted.best``. For that the
            patience itself must be the ``stop_when``.

    Returns:
        A function of the history, for ``training.fit(stop_when=…)``.

    Raises:
        ValueError, TypeError: blocks that are no positive int, a keep that is no function; when it is called, a measure
            that there is not, and a keep that does not give arrays, of each member its own.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> from jaxrnn import training
        >>> losses = [3.0, 2.0, 2.5, 2.1]
        >>> history = [training.BlockResult(10 * n, {"loss": np.array(loss)}) for n, loss in enumerate(losses, start=1)]
        >>> stop_when = training.patience("loss", 2)
        >>> stop_when(history[:3]), stop_when(history)
        (False, True)
        >>> block = jax.jit(lambda w: (w + 1, {"loss": (w - 2) ** 2}, {}))  # is best at 3, and goes on
        >>> stop_when = training.patience("loss", 2, keep=lambda w: w)
        >>> fitted = training.fit(block, jnp.asarray(0.0), steps=99, block_steps=1, stop_when=stop_when)
        >>> float(fitted.state), float(fitted.best.params), int(fitted.best.step), float(fitted.best.value)
        (5.0, 3.0, 3, 0.0)
    """
    if keep is not None and not callable(keep):
        raise TypeError(
            f"training.patience: keep must be a function of the state, got {keep!r:.80}; give lambda state: "
            f"state.params, say."
        )
    return Patience(measure, blocks, lower, keep)
