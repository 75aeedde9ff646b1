"""What the forward pass saves for the backward one: the smallest set from which the rest is cheap to compute again.

Every operation that costs about as much as reading its operands may be done a second time, in the backward loop, where
its operands are in cache; saving its result for all T steps would cost memory and the time to write and to read it.
Products, inner loops and whatever the table of primitives does not call cheap are done once.

The smallest such set is a minimum cut of the step's graph, as in

    He & Yu, "Transcending runtime-memory tradeoffs in checkpointing by being fusion aware", MLSys 2023.

Of cuts of equal size the one nearest to the backward pass is taken: σ(z) rather than z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from jaxrnn.planning.planned_step import PlannedStep
from jaxrnn.programs.primitives import CHEAP, has
from jaxrnn.programs.program import Op, Program, needed_for, reached_from


def save(step: PlannedStep) -> PlannedStep:
    """The step whose tangent reads what the primal saves: all that it needs, or less where ``recompute`` says so."""
    if step.tangent is None:
        return step
    primal, tangent = step.primal, step.tangent
    program = tangent.program
    d_x = [n for n in tangent.x if n not in primal.x and n not in step.saved]
    linear = reached_from(program.ops, [*tangent.d_consts, *tangent.carry, *d_x])
    of_tangent = [op for op in program.ops if linear.intersection(op.outputs)]
    wanted = [n for op in of_tangent for n in op.inputs if n not in linear]
    wanted += [n for n in program.outputs if n not in linear]
    varying = reached_from(program.ops, [*primal.carry, *primal.x])
    wanted = [n for n in dict.fromkeys(wanted) if n in varying and n not in primal.x]
    saved = smallest_to_save(program, primal.carry, primal.x, wanted) if step.plan.recompute else wanted

    n_outputs = len(primal.program.outputs) - len(step.saved)
    outputs = [*primal.program.outputs[:n_outputs], *saved]
    of_primal = needed_for(primal.program.ops, outputs)
    of_tangent = needed_for(program.ops, program.outputs, given=saved)
    return step._replace(
        primal=primal._replace(program=primal.program._replace(ops=of_primal, outputs=outputs)),
        tangent=tangent._replace(
            program=program._replace(ops=of_tangent, inputs=[*tangent.carry, *d_x, *primal.x, *saved])
        ),
        saved=tuple(saved),
    ).noting(saved=[str(program.kinds[n].shape) for n in saved])


def is_cheap(program: Program, op: Op) -> bool:
    """Whether an operation is done again rather than its result saved."""
    return has(op.name, CHEAP)


def smallest_to_save(
    program: Program,
    carry: Collection[int],
    given: Collection[int],
    wanted: Collection[int],
    *,
    cheap: Callable[[Program, Op], bool] = is_cheap,
    first: bool = False,
) -> list[int]:
    """The values to save, in order, so that the wanted ones follow by cheap operations from them and the given ones.

    Each value is an edge of a network, from where it enters to where it leaves, whose capacity is its size; what is cut
    is saved. Of cuts of equal size the one nearest to the wanted values is taken, or, with ``first``, the farthest.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    varying = reached_from(program.ops, [*carry, *given])
    free = (program.kinds.keys() - varying).union(given)
    ops = needed_for(program.ops, wanted, free)
    nodes = dict.fromkeys(n for n in carry if n not in free)
    nodes.update(dict.fromkeys(n for op in ops for n in op.outputs if n not in free))
    place = {n: i for i, n in enumerate(nodes)}
    source, sink = 2 * len(place), 2 * len(place) + 1

    def enters(n: int) -> int:
        return 2 * place[n]

    def leaves(n: int) -> int:
        return 2 * place[n] + 1

    sizes = {n: program.size(n) * program.kinds[n].dtype.itemsize for n in nodes}
    unit = max(math.gcd(*sizes.values()), sum(sizes.values()) // 2**29, 1)  # SciPy counts in 32 bits
    capacity = {(enters(n), leaves(n)): math.ceil(size / unit) for n, size in sizes.items()}
    endless = 1 + sum(capacity.values())
    capacity |= {(source, enters(n)): endless for n in carry if n in place}
    capacity |= {(leaves(n), sink): endless for n in wanted if n in place}
    for op in ops:
        for n in op.outputs:
            if n not in place:
                continue
            if cheap(program, op):
                capacity |= {(leaves(ref), enters(n)): endless for ref in op.inputs if ref in place}
            else:
                capacity[source, enters(n)] = endless
    if not place:
        return []
    rows, columns = zip(*capacity, strict=True)
    graph = csr_array((list(capacity.values()), (rows, columns)), shape=(sink + 1, sink + 1), dtype="int32")
    residual = (graph - maximum_flow(graph, source, sink).flow).tocoo()
    neighbours: dict[int, list[int]] = {}  # those to which there is room, or from which
    for a, b, room in zip(residual.row, residual.col, residual.data, strict=True):
        if room > 0:
            here, there = (a, b) if first else (b, a)
            neighbours.setdefault(int(here), []).append(int(there))
    start = source if first else sink
    reached, todo = {start}, [start]
    while todo:
        for node in neighbours.get(todo.pop(), []):
            if node not in reached:
                reached.add(node)
                todo.append(node)
    near, far = (enters, leaves) if first else (leaves, enters)
    return [n for n in nodes if near(n) in reached and far(n) not in reached]
