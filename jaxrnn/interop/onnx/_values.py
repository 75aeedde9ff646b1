"""What ``load`` knows of a tensor without an input at hand, and what becomes of it where its axes are laid out anew.

A tensor is one of

- a NumPy array: what the model stores, or sizes; sizes that the inputs decide are JAX's symbolic dimensions;
- Repeated: a stored array along axes of such sizes (zero initial states, learned ones);
- View: an input of the graph, outputs over time or final states, the axes permuted, merged or cut;
- Mask: the steps 0 … T-1, or which of them lie within a sequence's length;
- Unknown: anything else, with the reason why, which is raised only if the layer needs the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import export

from jaxrnn.interop.conversion import refuse
from jaxrnn.interop.onnx._running import dtype_of, ints

RUN = "run() computes it"
TAKE = f"{RUN}, and node= takes recurrent nodes out"


class Atom(NamedTuple):
    """An axis as it arose, of which an axis of a View may hold several, row-major.

    Fields:
        name: T, B, D (directions), H (units of one), F (features); of an input its place.
        size: a number or a symbolic dimension.
    """

    name: str
    size: Any


class View(NamedTuple):
    """An input, outputs over time or final states, by the atoms of each of its axes.

    Fields:
        kind: "input", "outputs" or "state".
        axes: the atoms of each axis.
        chain: of outputs, the levels that they come from.
        source: of an input, its name.
        whole: whether nothing has been cut away or joined to it.
        part: of outputs in two directions, the one that alone is left.
    """

    kind: str
    axes: tuple[tuple[Atom, ...], ...]
    chain: Any = None
    source: str = ""
    whole: bool = True
    part: int | None = None

    def __str__(self) -> str:
        if self.kind == "input":
            return f"the input {self.source!r}"
        return f"{'outputs' if self.kind == 'outputs' else 'final states'} with the axes {named(self.axes)}"


class Repeated(NamedTuple):
    """A stored array, of as many axes, along sizes that may be symbolic; it has 1 where it is repeated."""

    array: np.ndarray
    shape: tuple[Any, ...]


class Mask(NamedTuple):
    """The steps 0 … T-1 ("steps"), or whether each lies within its sequence's length ("valid"), by an input."""

    kind: str
    size: Any = None
    source: str = ""


class Unknown(NamedTuple):
    """Why a tensor is none of these: what ``refuse`` says."""

    where: str
    what: str
    why: str = RUN

    def refuse(self) -> Any:
        refuse(*self)


class Misfit(Exception):
    """Axes are laid out in a way that cannot be followed."""


def named(axes: Sequence[Sequence[Atom]]) -> str:
    return ", ".join("*".join(atom.name for atom in axis) or "1" for axis in axes)


def atoms_of(axis: Sequence[Atom]) -> tuple[Atom, ...]:
    """Those of an axis that matter: more than one entry long."""
    return tuple(atom for atom in axis if not _is(atom.size, 1))


def size_of(axis: Sequence[Atom]) -> Any:
    return math.prod((atom.size for atom in axis), start=1)


def _is(size: Any, number: int) -> bool:
    return isinstance(size, int) and size == number


class Sizes:
    """The sizes that a graph leaves open, as JAX's symbolic dimensions, at least 1; and those that its nodes settle."""

    def __init__(self) -> None:
        self.scope = export.SymbolicScope()
        self.known: dict[str | int, Any] = {}
        self.settled: dict[Any, int] = {}

    def named(self, name: str) -> Any:
        """The size of that name in the file, whose names may be any text; a new one for the name ""."""
        key = name or len(self.known)
        if key not in self.known:
            (self.known[key],) = export.symbolic_shape(f"s{len(self.known)}", scope=self.scope)
        return self.known[key]

    def settle(self, size: Any) -> Any:
        return self.settled.get(size, size)

    def same(self, size: Any, other: Any) -> bool:
        """Whether two sizes are equal, or a size that was open is settled by a number that it must be."""
        size, other = self.settle(size), self.settle(other)
        if size != other and self.is_open(size) and isinstance(other, int):
            self.settled[size] = other
            return True
        return bool(size == other)

    def settle_all(self, atoms: Sequence[Atom]) -> Any:
        """The product of some atoms' sizes."""
        return math.prod((self.settle(atom.size) for atom in atoms), start=1)

    def is_open(self, size: Any) -> bool:
        return any(size is dim for dim in self.known.values())


# ---- the operators that lay axes out anew -------------------------------------------------------


def reshaped(sizes: Sizes, view: View, target: Sequence[Any], declared: Sequence[Any] = ()) -> View:
    """The atoms in the same order, grouped to the sizes of the target, of which one may be -1.

    Exporters write an example's number in the place of a size that the graph leaves open. It stands for that size only
    where the file declares the axes of the result, the others by their names: elsewhere it might mix the axes.

    Args:
        declared: the sizes of the result as the file declares them.
    """
    atoms = [atom for axis in view.axes for atom in atoms_of(axis)]
    axes: list[Any] = [None] * len(target)
    open_at = next((k for k, size in enumerate(target) if _is(size, -1)), None)
    ahead = range(len(target) if open_at is None else open_at)
    back = [] if open_at is None else range(len(target) - 1, open_at, -1)
    settled: dict[Any, int] = {}
    for k in (*ahead, *back):
        taken: list[Atom] = []
        while (product := sizes.settle_all(taken)) != sizes.settle(target[k]):
            if len(taken) == 1 and declared and sizes.is_open(product) and isinstance(target[k], int):
                settled[product] = target[k]
                break
            if not atoms:
                raise Misfit
            if k in back:
                taken.insert(0, atoms.pop())
            else:
                taken.append(atoms.pop(0))
        axes[k] = tuple(taken)
    if open_at is not None:
        axes[open_at], atoms = tuple(atoms), []
    made = view._replace(axes=tuple(axes))
    if atoms or (settled and not _as_declared(sizes, made, declared, settled)):
        raise Misfit
    sizes.settled |= settled
    return made


def _as_declared(sizes: Sizes, view: View, declared: Sequence[Any], settled: Mapping[Any, int]) -> bool:
    """Whether each axis has the size that the file declares of it."""
    if len(declared) != len(view.axes):
        return False
    for axis, want in zip(view.axes, declared, strict=True):
        size = sizes.settle_all(axis)
        if settled.get(size, size) != want:
            return False
    return True


def _reshape(sizes: Sizes, x: Any, attributes: Mapping[str, Any], shape: Any, declared: Sequence[Any] = ()) -> Any:
    target = listed(shape)
    if not attributes.get("allowzero", 0):
        own = shape_of(x)
        if any(_is(size, 0) for size in target[len(own) :]):
            raise Misfit
        target = [own[k] if _is(size, 0) else size for k, size in enumerate(target)]
    if isinstance(x, Repeated):
        if x.array.size != 1:
            raise Misfit
        if any(_is(size, -1) for size in target):
            rest = math.prod(size for size in target if not _is(size, -1))
            target = [math.prod(x.shape) // rest if _is(size, -1) else size for size in target]
        return Repeated(x.array.reshape([1] * len(target)), tuple(target))
    return reshaped(sizes, x, target, declared)


def _transpose(sizes: Sizes, x: Any, attributes: Mapping[str, Any]) -> Any:
    count = len(x.axes if isinstance(x, View) else x.shape)
    perm = attributes.get("perm", range(count)[::-1])
    if isinstance(x, Repeated):
        return Repeated(x.array.transpose(perm), tuple(x.shape[k] for k in perm))
    return x._replace(axes=tuple(x.axes[k] for k in perm))


def _axes_of(attributes: Mapping[str, Any], axes: Any, count: int) -> list[int] | None:
    given = attributes.get("axes") if axes is None else ints(axes)
    return None if given is None else [int(k) % count for k in given]


def _squeeze(sizes: Sizes, x: Any, attributes: Mapping[str, Any], axes: Any = None) -> Any:
    shape = shape_of(x)
    gone = _axes_of(attributes, axes, len(shape))
    gone = [k for k, size in enumerate(shape) if _is(size, 1)] if gone is None else gone
    if not all(_is(shape[k], 1) for k in gone):
        raise Misfit
    stay = [k for k in range(len(shape)) if k not in gone]
    if isinstance(x, Repeated):
        return Repeated(x.array.reshape([x.array.shape[k] for k in stay]), tuple(shape[k] for k in stay))
    return x._replace(axes=tuple(x.axes[k] for k in stay))


def _unsqueeze(sizes: Sizes, x: Any, attributes: Mapping[str, Any], axes: Any = None) -> Any:
    given = attributes.get("axes") if axes is None else ints(axes)
    count = len(shape_of(x)) + len(given or ())
    new = {int(k) % count for k in given or ()}
    rest = iter(x.axes if isinstance(x, View) else x.shape)
    laid = tuple((() if isinstance(x, View) else 1) if k in new else next(rest) for k in range(count))
    if isinstance(x, Repeated):
        return Repeated(np.expand_dims(x.array, tuple(new)), laid)
    return x._replace(axes=laid)


def _flatten(sizes: Sizes, x: Any, attributes: Mapping[str, Any]) -> Any:
    if isinstance(x, Repeated):
        raise Misfit
    axis = attributes.get("axis", 1) % (len(x.axes) + 1)
    return x._replace(axes=(sum(x.axes[:axis], ()), sum(x.axes[axis:], ())))


def _slice(
    sizes: Sizes,
    x: Any,
    attributes: Mapping[str, Any],
    starts: Any = None,
    ends: Any = None,
    axes: Any = None,
    steps: Any = None,
) -> Any:
    starts, ends = (listed(attributes[n] if a is None else a) for n, a in (("starts", starts), ("ends", ends)))
    chosen = _axes_of(attributes, axes, len(shape_of(x))) or range(len(starts))
    for axis, start, end, step in zip(
        chosen, starts, ends, [1] * len(starts) if steps is None else ints(steps), strict=True
    ):
        x = _cut(sizes, x, axis, start, end, step)
    return x


def _cut(sizes: Sizes, x: Any, axis: int, start: Any, end: Any, step: int) -> Any:
    """The entries from start to end of one axis."""
    size = sizes.settle(shape_of(x)[axis])
    whole = _is(start, 0) and (sizes.settle(end) == size or (isinstance(end, int) and end >= 2**31 - 1))
    if step == 1 and (whole or (isinstance(size, int) and _numbers(start, end) == (0, size))):
        return x
    if not isinstance(size, int) or not _numbers(start, end):
        raise Misfit
    kept = range(size)[slice(start, end, step)]
    if isinstance(x, Repeated):
        array = x.array if x.array.shape[axis] == 1 else np.take(x.array, list(kept), axis)
        return Repeated(array, (*x.shape[:axis], len(kept), *x.shape[axis + 1 :]))
    (atom,) = x.axes[axis] if len(x.axes[axis]) == 1 else (None,)
    if atom is None or (x.kind == "outputs" and (atom.name != "D" or len(kept) != 1)):
        raise Misfit
    axes = (*x.axes[:axis], (atom._replace(size=len(kept)),), *x.axes[axis + 1 :])
    return x._replace(axes=axes, whole=False, part=kept[0] if x.kind == "outputs" else None)


def _numbers(start: Any, end: Any) -> tuple[int, int] | None:
    return (start, end) if isinstance(start, int) and isinstance(end, int) else None


def _gather(sizes: Sizes, x: Any, attributes: Mapping[str, Any], indices: Any) -> Any:
    """One entry of an axis, by a stored number."""
    if not isinstance(indices, np.ndarray) or indices.size != 1 or indices.dtype == object:
        raise Misfit
    axis = attributes.get("axis", 0) % len(shape_of(x))
    size = sizes.settle(shape_of(x)[axis])
    start = int(indices.item())
    start = start + size if start < 0 and isinstance(size, int) else start
    x = _cut(sizes, x, axis, start, start + 1, 1)
    return x if indices.ndim == 1 else _squeeze(sizes, x, {"axes": [axis]}) if indices.ndim == 0 else _misfit()


def _misfit() -> Any:
    raise Misfit


def _expand(sizes: Sizes, x: Any, attributes: Mapping[str, Any], shape: Any) -> Any:
    target = listed(shape)
    if isinstance(x, View):
        own = [sizes.settle(size) for size in shape_of(x)]
        if len(target) == len(own) and all(_is(t, 1) or sizes.settle(t) == s for t, s in zip(target, own, strict=True)):
            return x
        raise Misfit
    return repeated(x, target)


def repeated(x: np.ndarray | Repeated, target: Sequence[Any]) -> Repeated:
    """Broadcast both ways: a 1 in the shape keeps the size that is there."""
    array, own = (x.array, x.shape) if isinstance(x, Repeated) else (x, x.shape)
    rank = max(len(own), len(target))
    mine, theirs = ([1] * (rank - len(shape)) + list(shape) for shape in (own, target))
    if not all(_is(a, 1) or _is(b, 1) or a == b for a, b in zip(mine, theirs, strict=True)):
        raise Misfit
    shape = tuple(a if _is(b, 1) else b for a, b in zip(mine, theirs, strict=True))
    return Repeated(array.reshape((1,) * (rank - array.ndim) + array.shape), shape)


def _tile(sizes: Sizes, x: Any, attributes: Mapping[str, Any], repeats: Any) -> Any:
    times = listed(repeats)
    own = shape_of(x)
    if isinstance(x, View) or len(times) != len(own):
        raise Misfit
    if not all(_is(size, 1) or time == 1 for size, time in zip(own, times, strict=True)):
        raise Misfit
    array = x.array if isinstance(x, Repeated) else x
    return Repeated(array, tuple(size * time for size, time in zip(own, times, strict=True)))


def listed(sizes: Any) -> list[Any]:
    """Sizes as Python's numbers or symbolic dimensions."""
    return [int(size) if isinstance(size, np.integer) else size for size in np.ravel(sizes)]


def shape_of(x: Any) -> tuple[Any, ...]:
    if isinstance(x, View):
        return tuple(size_of(axis) for axis in x.axes)
    return tuple(x.shape)


def _cast(sizes: Sizes, x: Any, attributes: Mapping[str, Any]) -> Any:
    """An input in another dtype is the caller's; outputs keep theirs."""
    if isinstance(x, View) and x.kind != "input" and x.chain.dtype != dtype_of(attributes["to"]):
        raise Misfit
    return x


def _same(sizes: Sizes, x: Any, attributes: Mapping[str, Any], *others: Any) -> Any:
    return x


# What each operator makes of a View or of something Repeated: f(sizes, x, attributes, *stored). Misfit where it cannot.
LAYING: dict[str, Callable[..., Any]] = {
    "Cast": _cast,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _same,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
