"""The levels of a layer, found one after the other while the graph is read.

Each tensor of outputs over time knows the levels that it comes from: a Chain, which what reads the outputs prolongs and
never changes, so that a graph may branch where the layer does not need the other branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrnn as jr
from jaxrnn.interop.conversion import Level, Run, param_dtype, refuse, spec_of
from jaxrnn.interop.onnx._operators import Operator, weights_of
from jaxrnn.interop.onnx._reading import fail
from jaxrnn.interop.onnx._values import TAKE, Atom, Mask, Repeated, Sizes, Unknown, View, atoms_of, named, size_of
from jaxrnn.interop.onnx._weights import run_of
from jaxrnn.saving.parameters import as_jax

MERGES = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceProd": "product"}
OF_TWO = {"Add": "sum", "Mul": "product"}
FEATURES = (("F",), ("H",), ("D", "H"), ())
Axis = tuple[Atom, ...]


class Chain(NamedTuple):
    """Levels, each reading the one before.

    Fields:
        levels: the first one first.
        size: the features that the last one hands on.
        source: the tensor that the first one reads.
        reads: the axes of what the first recurrent node reads, as its source has them.
        time, batch: the axes of outputs, once that node has said which is which.
        nodes: the recurrent nodes, by the names that ``inspect`` gives.
        lengths: for each of them the input that holds the lengths, "" without.
        bare: a readout whose padded outputs nothing has set to 0.
        parent: the chain without the last step.
    """

    levels: tuple[Level, ...]
    size: int
    source: str
    reads: tuple[Axis, ...] = ()
    time: Axis = ()
    batch: Axis = ()
    nodes: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ()
    bare: str | None = None
    parent: Any = None

    @property
    def dtype(self) -> Any:
        """Of the outputs, which is that of the weights."""
        return jax.tree.leaves(self.levels[-1].runs[0].params)[0].dtype

    def comes_after(self, other: Chain) -> bool:
        """Whether this chain prolongs the other."""
        chain: Chain | None = self.parent
        while chain is not None and chain is not other:
            chain = chain.parent
        return chain is other

    def merged(self, merge: str) -> Chain:
        """The last level's two directions merged."""
        last, units = self.levels[-1], self.size // len(self.levels[-1].runs)
        return self._replace(levels=(*self.levels[:-1], last._replace(merge=merge)), size=units, parent=self)


def is_zero(a: Any) -> bool:
    a = a.array if isinstance(a, Repeated) else a
    return isinstance(a, np.ndarray) and not np.any(a)


# ---- what stands before the recurrent nodes and after them --------------------------------------


def embedded(where: str, table: np.ndarray, tokens: View) -> View | None:
    """Gather of a stored table's rows by an input of integers."""
    if tokens.kind != "input" or not tokens.whole or table.ndim != 2 or table.dtype.kind != "f":
        return None
    spec = spec_of("embedding", *table.shape, param_dtype=param_dtype(table))
    level = Level((Run(spec, jr.cells.EmbeddingParams(as_jax(where, table))),))
    axes = (*tokens.axes, (Atom("F", table.shape[1]),))
    return View("outputs", axes, Chain((level,), table.shape[1], tokens.source))


def multiplied(where: str, sizes: Sizes, y: View, W: Any, b: Any = None) -> View | None:
    """MatMul by stored weights (F, O): a readout; None for another form."""
    if not isinstance(W, np.ndarray) or W.ndim != 2 or W.dtype.kind != "f" or len(y.axes) < 2:
        return None
    came = features_of(y)
    if came is None or (y.kind == "input" and not y.whole):
        return None
    if not sizes.same(came, W.shape[0]):
        fail(where, f"its weights are for {W.shape[0]} features, but the layer before it outputs {came}")
    chain = y.chain or Chain((), W.shape[0], y.source)
    params = jr.cells.ReadoutParams(as_jax(where, W), as_jax(where, np.zeros(W.shape[1], W.dtype) if b is None else b))
    level = Level((Run(spec_of("readout", *W.shape, param_dtype=param_dtype(W)), params),))
    bare = where if chain.nodes else None
    made = chain._replace(levels=(*chain.levels, level), size=W.shape[1], bare=bare, parent=y.chain)
    return View("outputs", (*y.axes[:-1], (Atom("F", W.shape[1]),)), made)


def with_bias(where: str, y: View, b: Any) -> View | None:
    """Add of a stored bias to a readout without one; None for another form."""
    if y.chain is None or not isinstance(b, np.ndarray) or y.axes[-1] != (Atom("F", y.chain.size),):
        return None
    run = y.chain.levels[-1].runs[0]
    size = y.chain.size
    fits = b.size == 1 or (b.shape[-1] == size and b.size == size)
    if run.cell.kind != "readout" or np.any(run.params.b_y) or not fits or b.ndim > len(y.axes):
        return None
    params = run.params._replace(b_y=as_jax(where, np.broadcast_to(b.ravel(), size)))
    levels = (*y.chain.levels[:-1], Level((run._replace(params=params),)))
    return y._replace(chain=y.chain._replace(levels=levels, parent=y.chain))


def masked(condition: Any, y: View, other: Any) -> View | None:
    """Where that sets the padded steps of a readout to 0; None for another form."""
    if y.chain is None or not y.chain.lengths or not isinstance(condition, Mask) or not is_zero(other):
        return None
    fits = condition.size == size_of(y.chain.time) and condition.source == y.chain.lengths[-1]
    if condition.kind != "valid" or not fits:
        return None
    return y._replace(chain=y.chain._replace(bare=None, parent=y.chain))


# ---- two directions as one ----------------------------------------------------------------------


def reduced(kind: str, y: View, axes: Sequence[int], keepdims: bool) -> View | None:
    """The directions summed, averaged or multiplied; None for another form."""
    gone = [named([y.axes[int(k)]]) for k in axes]
    if y.kind != "outputs" or gone != ["D"] or y.part is not None or len(y.chain.levels[-1].runs) != 2 or keepdims:
        return None
    return _merged(y, MERGES[kind])


def _merged(y: View, merge: str) -> View:
    """Outputs whose directions are merged into features: H becomes F, D is gone."""
    axes = tuple(
        tuple(atom._replace(name="F") if atom.name == "H" else atom for atom in axis)
        for axis in y.axes
        if named([axis]) != "D"
    )
    return y._replace(axes=axes, chain=y.chain.merged(merge), part=None, whole=True)


def joined(kind: str, given: Sequence[View], axis: int | None = None) -> View | None:
    """Both directions of one node, or a forward and a reverse node that read the same, side by side."""
    if len(given) != 2 or any(y.kind != "outputs" for y in given):
        return None
    a, b = given
    last = axis is not None and axis % len(a.axes) == len(a.axes) - 1
    if kind == "Concat" and not (last and named([a.axes[-1]]) == named([b.axes[-1]]) == "H"):
        return None
    if kind != "Concat" and [named([axis]) for axis in a.axes] != [named([axis]) for axis in b.axes]:
        return None
    if a.chain is b.chain and {a.part, b.part} == {0, 1}:
        if kind != "Concat":
            return _merged(a, OF_TWO[kind])
        both = (*a.axes[:-1], (Atom("D", 2), Atom("H", a.chain.size // 2)))
        return a._replace(axes=both, part=None, whole=True) if a.part == 0 else None
    return _side_by_side(kind, a, b)


def _side_by_side(kind: str, a: View, b: View) -> View | None:
    """Of two nodes that read the same; a forward one first where the outputs are concatenated."""
    if kind != "Concat" and _reverses(a) == (True,):
        a, b = b, a
    one, two = a.chain, b.chain
    if (_reverses(a), _reverses(b)) != ((False,), (True,)) or a.axes != b.axes:
        return None
    same = one.parent is two.parent and (one.source, one.reads) == (two.source, two.reads)
    if not same or one.lengths != two.lengths or one.size != two.size or one.levels[-1].merge:
        return None
    level = Level((one.levels[-1].runs[0], two.levels[-1].runs[0]), "concat")
    nodes = (*one.nodes, *(name for name in two.nodes if name not in one.nodes))
    chain = one._replace(levels=(*one.levels[:-1], level), size=2 * one.size, nodes=nodes)
    both = View("outputs", (*a.axes[:-1], (Atom("D", 2), Atom("H", one.size))), chain)
    if kind == "Concat":
        return both
    return View("outputs", (*a.axes[:-1], (Atom("F", one.size),)), chain.merged(OF_TWO[kind]))


def _reverses(y: View) -> tuple[bool, ...]:
    """Of the last level's runs; () where it is no recurrent node."""
    runs = y.chain.levels[-1].runs
    return () if runs[0].cell.kind in ("readout", "embedding") else tuple(run.reverse for run in runs)


# ---- the recurrent nodes ------------------------------------------------------------------------


def features_of(y: View) -> Any:
    """The size of the last axis where it holds every feature of a level, or of an input; None where it does not."""
    if y.kind == "input":
        return size_of(y.axes[-1]) if y.axes else None
    names = tuple(atom.name for atom in atoms_of(y.axes[-1]))
    if y.kind != "outputs" or y.part is not None or names not in FEATURES:
        return None
    size = size_of(y.axes[-1])
    return size if size == y.chain.size else None


def recurrent(
    op: Operator,
    name: str,
    sizes: Sizes,
    X: Any,
    W: Any,
    R: Any,
    B: Any = None,
    lens: Any = None,
    h0: Any = None,
    c0: Any = None,
    P: Any = None,
) -> tuple[View, View, View]:
    """Outputs and final states of a node, with its weights as one more level."""
    for weight, array in (("W", W), ("R", R), ("B", B), ("P", P)):
        if isinstance(array, Unknown):
            array.refuse()
        if array is not None and (not isinstance(array, np.ndarray) or array.dtype == object):
            refuse(op.where, f"{weight} that is not stored in the model", TAKE)
    weights = weights_of(op, W, R, B, P)
    chain = _read(op, sizes, X, W.shape[-1])
    H = R.shape[-1]
    runs = []
    for d, own in enumerate(weights):
        h, c = (_initial(op, state, array, d, H, W.dtype) for state, array in (("initial_h", h0), ("initial_c", c0)))
        runs.append(run_of(op, op.activations[d], own, h, c)._replace(reverse=op.reversed[d]))
    made = chain._replace(
        levels=(*chain.levels, Level(tuple(runs))),
        size=H * len(runs),
        nodes=(*chain.nodes, name),
        lengths=(*chain.lengths, _source(op.where, lens)),
        bare=None,
        parent=X.chain,
    )
    directions, units = (Atom("D", len(runs)),), (Atom("H", H),)
    T, batch = made.time, made.batch
    outputs = (batch, T, directions, units) if op.layout else (T, directions, batch, units)
    states = (batch, directions, units) if op.layout else (directions, batch, units)
    state = View("state", states, made)
    return View("outputs", outputs, made), state, state


def as_input(op: Operator, X: Any, name: str, features: int, sizes: Sizes) -> View:
    """What a node that is taken out of a graph reads: its chain where there is one, else an input of its own."""
    if isinstance(X, View) and len(X.axes) == 3 and X.whole and features_of(X) is not None:
        return X
    axes = (Atom("T", sizes.named("")), Atom("B", sizes.named("")), Atom("F", features))
    return View("input", tuple((atom,) for atom in axes), source=name)


def _read(op: Operator, sizes: Sizes, X: Any, features: int) -> Chain:
    """The chain that ends in X, which the node reads, with its axes of time and batch known."""
    if isinstance(X, Unknown):
        X.refuse()
    if not isinstance(X, View) or X.kind == "state" or not (X.whole or X.kind == "outputs"):
        refuse(op.where, "a sequence that is not an input of the graph", TAKE)
    chain = X.chain or Chain((), features, X.source)
    if len(X.axes) != 3 or (came := features_of(X)) is None:
        want = "B, T, F" if op.layout else "T, B, F"
        refuse(op.where, f"an X with the axes {named(X.axes)}", f"expected {want}; {TAKE}")
    if not sizes.same(came, features):
        fail(op.where, f"W is for {features} features, but the layer before it outputs {came}")
    time, batch = X.axes[1::-1] if op.layout else X.axes[:2]
    if not chain.reads:
        if len(atoms_of(time)) > 1 or len(atoms_of(batch)) > 1:
            refuse(op.where, "a sequence whose axes are merged from others", TAKE)
        T, B = Atom("T", size_of(time)), Atom("B", size_of(batch))
        return chain._replace(reads=X.axes, time=(T,), batch=(B,))
    if [atoms_of(axis) for axis in (time, batch)] != [atoms_of(axis) for axis in (chain.time, chain.batch)]:
        want = "B, T, F" if op.layout else "T, B, F"
        refuse(op.where, f"an X with the axes {named(X.axes)}", f"expected {want}; {TAKE}")
    return chain


def _source(where: str, lens: Any) -> str:
    """The graph's input that holds the lengths, "" where there are none."""
    if lens is None:
        return ""
    if isinstance(lens, View) and lens.kind == "input" and lens.whole:
        return lens.source
    refuse(where, "sequence_lens that are not an input of the graph", f"lengths are an argument of apply; {TAKE}")


def _initial(op: Operator, name: str, state: Any, d: int, H: int, dtype: Any) -> np.ndarray | None:
    """(H,), a stored initial state of one direction; None for zeros and for what the caller passes."""
    if state is None or is_zero(state) or (isinstance(state, View) and state.kind == "input"):
        return None
    if isinstance(state, Unknown):
        state.refuse()
    if isinstance(state, np.ndarray | Repeated) and not (isinstance(state, np.ndarray) and state.dtype == object):
        array = state.array if isinstance(state, Repeated) else state
        shape = tuple(state.shape)
        if len(shape) != 3 or shape[-1] != H or shape[1 if op.layout else 0] != len(op.reversed):
            fail(op.where, f"{name} has the shape {shape}; expected {len(op.reversed)} directions of {H} units")
        array = np.moveaxis(array, 1, 0) if op.layout else array  # of a Repeated an axis may have 1 row for all
        rows = np.broadcast_to(array[d if len(array) > 1 else 0], (array.shape[1], H))
        if not np.any(rows):
            return None
        if rows.shape[0] and (rows == rows[:1]).all():
            return rows[0].astype(dtype)
        refuse(op.where, f"a stored {name} that differs from sequence to sequence", "pass it as an input of the graph")
    refuse(op.where, f"an {name} that the graph computes", f"a carry starts stored or is passed; {TAKE}")
