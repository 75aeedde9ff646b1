"""To look into programs: the equations of traced ones, the loops of compiled ones."""

import re

import jax

import jaxrnn as jr
from tests.cases import weigh

COLLECTIVE = r"all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def equations(jaxpr, name):
    """All equations of a primitive, those of inner programs too."""
    found = []
    for eqn in jaxpr.eqns:
        found += [eqn] if eqn.primitive.name == name else []
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            found += equations(inner, name) if hasattr(inner, "eqns") else []
    return found


def loops(function, *args):
    return [eqn.params["jaxpr"].jaxpr for eqn in equations(jax.make_jaxpr(function)(*args).jaxpr, "scan")]


def computations_of(program):
    """The text of each computation of a compiled program, by its name."""
    pattern = r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n.*?^\}"
    return {found[1]: found[0] for found in re.finditer(pattern, program, re.M | re.S)}


def collectives_in_loops(program, innermost=False):
    """The collectives of a compiled program that stand in a computation that some while loop runs; of loops that have
    loops in them only these, where that is asked."""
    computations = computations_of(program)
    bodies = set(re.findall(r"body=%?([\w.\-]+)", program))
    assert bodies, "the program has no loop"

    def reached(todo):
        within, todo = set(todo), list(todo)
        while todo:
            for callee in re.findall(
                r"(?:calls|to_apply|body|condition|branch_computations)=\{?%?([\w.\-]+)", computations[todo.pop()]
            ):
                if callee not in within:
                    within.add(callee)
                    todo.append(callee)
        return within

    if innermost:
        bodies = {name for name in bodies if not (reached([name]) - {name}) & bodies}
    pattern = rf"({COLLECTIVE})(?:-start)?\("
    return [found for name in reached(bodies) for found in re.findall(pattern, computations[name])]


def accumulators(program):
    """The shapes that the loops of a compiled program change from step to step, by loop."""
    computations = computations_of(program)
    changed = []
    for body in re.findall(r"body=%?([\w.\-]+)", program):
        text = computations[body]
        shapes = dict(re.findall(r"%([\w.\-]+) = (\w+\[[\d,]*\])", text))
        passed_on = re.findall(r"%([\w.\-]+) = \S+ get-tuple-element\([^)]*\), index=(\d+)", text)
        (root,) = re.findall(r"ROOT %\S+ = .*? tuple\(([^\n]*?)\)(?:,|\n)", text)
        operands = re.findall(r"%([\w.\-]+)", root)
        kept = {name for name, index in passed_on if operands[int(index)] == name}
        changed.append({shapes[name] for name in operands if name not in kept})
    return changed


def products_in_loops(function, *args):
    """How many products of matrices each loop of a traced program has."""
    return [len(equations(loop, "dot_general")) for loop in loops(function, *args)]


def gradient(cell, plan, **options):
    """``(params, xs) ->`` the gradient by both of a loss of all that a run puts out."""
    return jax.grad(lambda params, xs: weigh(jr.scan(cell, plan=plan, **options).apply(params, xs)), argnums=(0, 1))
