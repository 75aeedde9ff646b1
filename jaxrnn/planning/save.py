"""What the forward pass saves for the backward one: the smallest set from which the rest is cheap to compute again.

Every operation that costs about as much as reading its operands may be done a second time, in the backward loop, where
its operands are in cache; saving its result for all T steps would cost memory and the time to write and to read it.
Products, inner loops and whatever is not listed here are done once.

The smallest such set is a minimum cut of the step's graph, as in

    He & Yu, "Transcending runtime-memory tradeoffs in checkpointing by being fusion aware", MLSys 2023.

Of cuts of equal size the one nearest to the backward pass is taken: σ(z) rather than z.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from jaxrnn.programs.primitives import CHEAP, has
from jaxrnn.programs.program import Program, needed_for, reached_from


def smallest_to_save(
    program: Program, carry: Collection[int], given: Collection[int], wanted: Collection[int]
) -> list[int]:
    """The values to save, in order, so that the wanted ones follow by cheap operations from them and the given ones."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    varying = reached_from(program.ops, [*carry, *given])
    free = (program.kinds.keys() - varying).union(given)
    ops = needed_for(program.ops, wanted, free)
    nodes = dict.fromkeys(n for n in carry if n not in free)
    nodes.update(dict.fromkeys(n for op in ops for n in op.outputs if n not in free))
    place = {n: i for i, n in enumerate(nodes)}
    source, sink = 2 * len(place), 2 * len(place) + 1
    entry = lambda n: 2 * place[n]  # noqa: E731
    leave = lambda n: 2 * place[n] + 1  # noqa: E731

    sizes = {n: program.size(n) * program.kinds[n].dtype.itemsize for n in nodes}
    unit = max(math.gcd(*sizes.values()), sum(sizes.values()) // 2**29, 1)  # SciPy counts in 32 bits
    capacity = {(entry(n), leave(n)): math.ceil(size / unit) for n, size in sizes.items()}
    endless = 1 + sum(capacity.values())
    capacity |= {(source, entry(n)): endless for n in carry if n in place}
    capacity |= {(leave(n), sink): endless for n in wanted if n in place}
    for op in ops:
        for n in op.outputs:
            if n not in place:
                continue
            if has(op.name, CHEAP):
                capacity |= {(leave(ref), entry(n)): endless for ref in op.inputs if ref in place}
            else:
                capacity[source, entry(n)] = endless
    if not place:
        return []
    rows, columns = zip(*capacity, strict=True)
    graph = csr_array((list(capacity.values()), (rows, columns)), shape=(sink + 1, sink + 1), dtype="int32")
    flow = maximum_flow(graph, source, sink).flow
    left = (graph - flow).tocoo()  # residual capacities
    back: dict[int, list[int]] = {}
    for a, b, room in zip(left.row, left.col, left.data, strict=True):
        if room > 0:
            back.setdefault(int(b), []).append(int(a))
    to_sink, todo = {sink}, [sink]
    while todo:
        for a in back.get(todo.pop(), []):
            if a not in to_sink:
                to_sink.add(a)
                todo.append(a)
    return [n for n in nodes if leave(n) in to_sink and entry(n) not in to_sink]
