"""Faults of plans, and of the constants by which they choose."""

from __future__ import annotations

from tests.faults.fault import Fault, tests

FAULTS = (
    Fault(
        "a cotangent added twice",
        '(total,) = regrouped.add("sum", add_up, leaving, [kind])',
        '(total,) = regrouped.add("sum", add_up, [*leaving, leaving[0]], [kind])',
        tests("test_contract", "equals_the_plain_loop"),
    ),
    Fault(
        "a bias's gradient left out of the contraction",
        "ones = [jnp.ones((*xs[0].shape[:-1], 1), xs[0].dtype)] * has_ones",
        "ones = [jnp.zeros((*xs[0].shape[:-1], 1), xs[0].dtype)] * has_ones",
        tests("test_join_contractions", "what_meets_in_the_loop"),
    ),
    Fault(
        "a row of each member of the batch taken for a bias",
        "if self.kinds[row].shape == of_row:",
        "if self.kinds[row].shape[-1:] == of_row[-1:]:",
        tests("test_join_contractions", "what_meets_in_the_loop"),
    ),
    Fault(
        "a contraction's product transposed",
        "return dW if x_first == (axis == 0) else dW.T",
        "return dW if dW.shape == W.aval.shape else dW.T",
        tests("test_contract", "equals_the_plain_loop or runs_agree"),
    ),
    Fault(
        "the gradient of one of fused weights dropped",
        "lambda *Ws: [jnp.concatenate(Ws, free)], weights",
        "lambda *Ws: [jnp.concatenate([*Ws[:-1], jax.lax.stop_gradient(Ws[-1])], free)], weights",
        tests("test_contract", "textbook_lstm and (equals_the_plain_loop or runs_agree)"),
    ),
    Fault(
        "fused products handed out in the wrong order",
        "_split(total, tuple(op.outputs[0] for op in members), sizes, axis)",
        "_split(total, tuple(op.outputs[0] for op in members[::-1]), sizes[::-1], axis)",
        tests("test_contract", "textbook_lstm and (equals_the_plain_loop or runs_agree)"),
    ),
    Fault(
        "a plan saves too little: products are made again",
        '"dot_general": PRODUCT | MOVABLE,',
        '"dot_general": PRODUCT | MOVABLE | CHEAP,',
        tests("test_plans", "smallest_set or costly"),
    ),
    Fault(
        "a plan saves everything",
        "saved = smallest_to_save(program, primal.carry, primal.x, wanted) if step.plan.recompute else wanted",
        "saved = wanted",
        tests("test_plans", "smallest_set"),
    ),
    Fault(
        "weights go round the backward loop",
        "return loop._replace(program=program, outside=frozenset(outside)), left, stayed",
        "return loop, left, stayed",
        tests("test_plans", "compiled_backward_loop"),
    ),
    Fault(
        "large weights on the left lose their transpose",
        'rewriting.ops.append(Op("transpose", lambda a: [a.T], (total,), op.outputs))',
        'rewriting.ops.append(Op("transpose", lambda a: [a.reshape(a.shape[::-1])], (total,), op.outputs))',
        tests("test_weights_on_the_left", "large_weights"),
    ),
    Fault(
        "pieces are joined to their neighbours",
        "(sum(sizes[:first]), sum(sizes[first + n :]), 0) if i == axis",
        "(sum(sizes[first + n :]), sum(sizes[:first]), 0) if i == axis",
        tests("test_join_pieces", "enters"),
    ),
    Fault(
        "narrow constants leave the loop",
        "return frozenset(n for op in program.ops for n in op.outputs if n in of_consts and "
        "is_narrow(program.kinds[n]))",
        "return frozenset(n for n in of_consts if n is None)",
        tests("test_running", "narrow_biases or equal_contributions or products_in_bfloat16"),
    ),
    # ---- tuning
    Fault(
        "processes of one job read each its own constants",
        "if jax.process_count() > 1 or jax.default_backend()",
        "if jax.default_backend()",
        tests("test_tuning", "where_no_file_is_read"),
    ),
    Fault(
        "a tuning file of another machine is taken",
        "if type(there) is not type(here) or there != here:",
        "if there is None:",
        tests("test_tuning", "ignored_with_one_warning"),
    ),
    Fault(
        "tune compares a program with itself",
        "left_from=1 if choice else math.inf",
        "left_from=1",
        tests("test_tuning", "what_is_compared"),
    ),
)
