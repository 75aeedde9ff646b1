"""One activation for gates that have the same: ``sigmoid(i)``, ``sigmoid(f)`` and ``sigmoid(o)`` are pieces of
``sigmoid([i, f, o])``.

A loop that puts its gates out, for the backward pass, computes each of them by code of its own. Where it is one kernel,
that is most of what there is to compile, and to run. Gates that do not lie side by side in the product that they are
split from are brought together there: the columns of its weights are put in another order, once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.planning import _rules
from jaxrnn.planning.planned_step import PlannedStep
from jaxrnn.programs.primitives import CAST, STRETCHES, has
from jaxrnn.programs.program import Op, Program, Rewriting, needed_for

ACTIVATIONS = ("logistic", "tanh", "exp", "exp2", "expm1", "log", "log1p", "log2", "erf", "sin", "cos")


def join_gates(step: PlannedStep) -> PlannedStep:
    """The primal of a kernel, where there is a gradient, with the gates of one activation as pieces of one array.

    Measured on two cores (AMD EPYC), idle, training step, joined / not, time and seconds to compile, (B, T, I, H) =
    (1, 1000, 16, 16), (1, 1000, 64, 64), (2, 500, 32, 32), (8, 1000, 2, 16): LSTM 0.69, 1.01; 0.93, 0.94; 0.88, 1.09;
    0.92, 0.67. GRU 0.81, 0.95; 0.99, 0.87; 0.84, 1.02; 0.88, 0.79. With peepholes 0.74, 1.07; 1.00, 0.79; 1.02, 1.13;
    0.84, 0.69. LSTM in eight products 0.64, 0.84; 0.99, 0.85; 0.84, 0.88; 0.92, 0.60. Weights in another order are
    copies, which pay by the rule for weights that are put together, ``_rules.fuses``: the LSTM (1, 100, 256, 256), with
    three gates joined, 1.07, and twice the temporaries.

    Elsewhere it does not pay. Forward alone the gates are one kernel already, LSTM (8, 1000, 2, 16) 1.04; where loops
    are no kernels, LSTM (32, 128, 128, 128) 1.15 on one device and 1.3 on two, GRU 0.98 to 1.08 and 0.9 to 1.0.
    """
    if not step.has_kernel or step.active is None:
        return step.noting(gates=[])
    read = _Read(step)
    gates: dict[Any, list[_Gate]] = {}
    for op in read.program.ops:
        if op.name in ACTIVATIONS and (gate := _gate(read, op)):
            gates.setdefault(gate.alike, []).append(gate)
    groups = [group for of_one_kind in gates.values() for group in _groups(read, of_one_kind) if len(group) > 1]
    step = step.noting(gates=[f"{len(group)} of {group[0].op.name}" for group in groups])
    return step._replace(primal=step.primal._replace(program=_joined(read, groups))) if groups else step


class _Gate(NamedTuple):
    """An activation of what comes of pieces, each split from a wider value, and of what the step is given."""

    alike: Any  # what gates have in common that may be joined: the operations, and what the pieces are split from
    op: Op
    leaves: tuple[int, ...]  # the pieces and the rest, but for what is the same for all columns, as they are met


class _Read:
    """The program of a step's primal, and what is looked up in it."""

    def __init__(self, step: PlannedStep):
        self.step, self.program = step, (program := step.primal.program)
        self.kinds, self.fixed = program.kinds, program.fixed()
        self.makers = {n: op for op in program.ops for n in op.outputs}
        self.uses = Counter([*program.outputs, *(n for op in program.ops for n in op.inputs)])

    def split_of(self, piece: int) -> Op | None:
        """The split along the last axis that the piece comes of, where nothing else reads what is split."""
        op = self.makers.get(piece)
        if op is None or op.name != "split" or self.uses[op.inputs[0]] != 1 or op.inputs[0] in self.fixed:
            return None
        kind = self.kinds[op.inputs[0]]
        return op if op.params["axis"] == kind.ndim - 1 and not any(kind.sharding.spec) else None

    def is_given(self, n: int) -> bool:
        """Whether a value is there before anything is done at a step: it can be repeated."""
        return n in self.fixed or n in self.program.inputs

    def is_one_column(self, n: int) -> bool:
        """Whether a value is the same for all columns."""
        return self.kinds[n].ndim == 0 or self.kinds[n].shape[-1] == 1

    def may_move(self, split: Op) -> bool:
        """Whether the pieces of a split can come in another order, by that of constants, and it pays to copy these."""
        (total,) = split.inputs
        weights, outputs = self._copied(total), self.program.size(total)
        if weights is None:
            return False
        return _rules.fuses(self.step.plan, weights, outputs, steps=self.step.steps, gradient=True)

    def _copied(self, n: int) -> int | None:
        """How many numbers of constants are copied where the columns of a value move; None where they cannot."""
        op = self.makers.get(n)
        if self.is_one_column(n):
            return 0
        if n in self.fixed:
            return 0 if op is not None and self.parts_of(op) else self.program.size(n)
        if op is None or self.uses[n] != 1:
            return None
        if op.name == "dot_general":
            (_, of_W), batch = op.params["dimension_numbers"]
            W = op.inputs[1]
            is_matrix = W in self.fixed and self.kinds[W].ndim == 2 and tuple(of_W) == (0,) and not any(batch)
            return self._copied(W) if is_matrix else None
        of_inputs = [self._copied(i) for i in op.inputs] if has(op.name, STRETCHES | CAST) else [None]
        return None if None in of_inputs else sum(filter(None, of_inputs))

    def parts_of(self, op: Op) -> dict[tuple[int, int], int]:
        """What columns were put together from, by the first and the end of each; nothing, where they were not."""
        if op.name != "concatenate":
            return {}
        stops = [*itertools.accumulate(self.kinds[n].shape[-1] for n in op.inputs)]
        ends = zip([0, *stops], stops, strict=False)
        is_last_axis = stops[-1] == self.kinds[op.outputs[0]].shape[-1] > stops[0]
        return dict(zip(ends, op.inputs, strict=True)) if is_last_axis else {}


def _gate(read: _Read, op: Op) -> _Gate | None:
    """The activation as a gate; None where it is one of something else."""
    leaves: list[int] = []

    def alike(n: int) -> Any:
        """What it must share with another; None where it is no part of a gate."""
        kind, maker = read.kinds[n], read.makers.get(n)
        if read.is_given(n):
            if read.is_one_column(n):
                value = maker.params.get("value") if maker is not None and not kind.shape else None
                return n if value is None else (str(value), kind.dtype)  # a number, which each gate has of its own
            leaves.append(n)
            return (kind.shape[:-1], kind.dtype) if n in read.fixed else n
        if maker is None or read.is_one_column(n) or (read.uses[n] != 1 and maker is not op):
            return None
        if split := read.split_of(n):
            leaves.append(n)
            return split.inputs
        if maker is not op and not has(maker.name, STRETCHES | CAST):
            return None
        of_inputs = tuple(map(alike, maker.inputs))
        options = tuple((name, str(value)) for name, value in sorted(maker.params.items()))
        return None if None in of_inputs else (maker.name, options, kind.dtype, of_inputs)

    found = alike(op.outputs[0])
    return _Gate(found, op, tuple(leaves)) if found and any(map(read.split_of, leaves)) else None


def _groups(read: _Read, gates: Sequence[_Gate]) -> Iterator[list[_Gate]]:
    """Gates that are alike, in the order of their pieces: all together, where these can be brought side by side, or
    those that lie so."""

    def places(gate: _Gate) -> list[tuple[int, bool]]:
        """Of each piece: which it is of its split, and whether it can be moved."""
        splits = [(n, split) for n in gate.leaves if (split := read.split_of(n))]
        return [(split.outputs.index(n), read.may_move(split)) for n, split in splits]

    group: list[_Gate] = []
    for gate in sorted(gates, key=places):
        before = places(group[-1]) if group else []
        if any(
            not moves and here != there + 1 for (here, moves), (there, _) in zip(places(gate), before, strict=False)
        ):
            yield group
            group = []
        group.append(gate)
    yield group


def _joined(read: _Read, groups: Sequence[Sequence[_Gate]]) -> Program:
    """The program with each group as one activation, then split into what its gates were."""
    joining = _Joining(read)
    gates = {gate.op.outputs[0]: group for group in groups for gate in group}
    pieces = {
        n: leaves for group in groups for leaves in zip(*(gate.leaves for gate in group), strict=True) for n in leaves
    }
    constant = [op for op in read.program.ops if read.fixed.issuperset(op.outputs)]
    varying = [op for op in read.program.ops if not read.fixed.issuperset(op.outputs)]
    joining.ops = constant
    waiting = set(gates)
    for op in varying:
        group = gates.get(op.outputs[0]) if op.outputs else None
        if group is not None:
            if op.outputs[0] in waiting:  # the first of the group
                joining.activate(group)
                waiting.difference_update(gate.op.outputs[0] for gate in group)
        elif op.name == "split" and not pieces.keys().isdisjoint(op.outputs):
            joining.split(op, pieces)
        else:
            joining.ops.append(op)
    program = joining.done()
    return program._replace(ops=needed_for(program.ops, program.outputs))


class _Joining(Rewriting):
    """A program whose gates are being joined. A joined piece has the number of the first of those in it."""

    def __init__(self, read: _Read):
        super().__init__(read.program._replace(ops=[]))
        self.read = read

    def activate(self, group: Sequence[_Gate]) -> None:
        """The activation of a group, and what its gates were, split from it."""
        leaves = iter(zip(*(gate.leaves for gate in group), strict=True))
        outputs = tuple(gate.op.outputs[0] for gate in group)
        sizes = tuple(self.read.kinds[n].shape[-1] for n in outputs)

        def joined(n: int) -> int:
            if self.read.is_given(n):
                return n if self.read.is_one_column(n) else self._concatenated(next(leaves))
            if self.read.split_of(n):
                return next(leaves)[0]
            op = self.read.makers[n]
            inputs = [joined(i) for i in op.inputs]
            return self.add(op.name, op.run, inputs, [self._wide(n, sum(sizes))], op.params)[0]

        self._split(joined(outputs[0]), outputs, sizes)

    def split(self, op: Op, pieces: Mapping[int, tuple[int, ...]]) -> None:
        """The split with the pieces of each group side by side, and as one."""
        parts = list(dict.fromkeys(pieces.get(n, (n,)) for n in op.outputs))
        widths = dict(zip(op.outputs, op.params["sizes"], strict=True))
        starts = dict(zip(op.outputs, itertools.accumulate((0, *op.params["sizes"])), strict=False))
        order = [n for part in parts for n in part]
        (total,) = op.inputs
        if order != list(op.outputs):
            total = self._reordered(total, [(starts[n], starts[n] + widths[n]) for n in order])
        sizes = tuple(sum(widths[n] for n in part) for part in parts)
        self.kinds.update({part[0]: self._wide(part[0], size) for part, size in zip(parts, sizes, strict=True)})
        self._split(total, tuple(part[0] for part in parts), sizes)

    def _split(self, total: int, outputs: tuple[int, ...], sizes: tuple[int, ...]) -> None:
        axis = self.kinds[total].ndim - 1
        run = lambda a: jax.lax.split(a, sizes, axis)
        self.ops.append(Op("split", run, (total,), outputs, {"sizes": sizes, "axis": axis}))

    def _wide(self, n: int, width: int) -> Any:
        """The kind of a value with so many columns."""
        return self.kinds[n].update(shape=(*self.kinds[n].shape[:-1], width))

    def _concatenated(self, parts: Sequence[int]) -> int:
        kind = self._wide(parts[0], sum(self.kinds[n].shape[-1] for n in parts))
        return self.add("concatenate", lambda *arrays: [jnp.concatenate(arrays, -1)], parts, [kind])[0]

    def _reordered(self, n: int, order: Sequence[tuple[int, int]]) -> int:
        """A value with its columns, each from one place to another, in this order."""
        op, kind = self.read.makers.get(n), self.kinds[n]
        if self.read.is_one_column(n):
            return n
        if n in self.read.fixed:
            parts = self.read.parts_of(op) if op is not None else {}
            if parts.keys() >= set(order):
                return self._concatenated([parts[ends] for ends in order])
            run = lambda a: [jnp.concatenate([a[..., start:stop] for start, stop in order], -1)]
            return self.add("concatenate", run, (n,), [kind])[0]
        assert op is not None
        still = 1 if op.name == "dot_general" else 0  # what is multiplied by the weights
        inputs = [*op.inputs[:still], *(self._reordered(i, order) for i in op.inputs[still:])]
        return self.add(op.name, op.run, inputs, [kind], op.params)[0]
