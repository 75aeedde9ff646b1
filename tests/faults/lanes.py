"""Faults of sequences that share lanes."""

from __future__ import annotations

from tests.faults.fault import Fault, tests

FAULTS = (
    Fault(
        "the second sequence of a lane starts from the end of the first",
        "            carry = select(begins_m, starts[m], carry)\n",
        "",
        tests("test_packed", "plain"),
    ),
    Fault(
        "the end of the first sequence of a lane is lost",
        "return packing.join([*ends, end]), packing.unpack(ys)",
        "return packing.join([*starts[:-1], end]), packing.unpack(ys)",
        tests("test_packed", "plain"),
    ),
    Fault(
        "a reversed run enters a packed sequence from its start",
        "t = entry - step if reverse else entry + step",
        "t = entry + step",
        tests("test_packed", "once_and_in_order"),
    ),
    Fault(
        "one draw of noise stays where it was when rows move",
        "noise_t = [next(each_step) if rows is None else of_member(rows, member) for rows in of_rows]",
        "noise_t = [next(each_step) if rows is None else rows[0] for rows in of_rows]",
        tests("test_packed", "noise_moves"),
    ),
    Fault(
        "rows that meet are packed",
        'raise MixedError(f"{name} over the batch")',
        "pass",
        tests("test_packed", "says_why"),
    ),
    Fault(
        "a loop with a count takes all steps",
        "loop_in_place(step, (0, count), carry, xs, ys, reverse=reverse)",
        "loop_in_place(step, (0, length), carry, xs, ys, reverse=reverse)",
        tests("test_counted", "steps_beyond_the_count"),
    ),
    Fault(
        "the part of the steps within which the count ends is not run",
        "counted_scan(checkpoint(of_counted), -(-count // size),",
        "counted_scan(checkpoint(of_counted), count // size,",
        tests("test_packed", "in_parts"),
    ),
    Fault(
        "the part of the steps within which the count ends is run to its end",
        "of_segment(carry, xs, jnp.minimum(count - start, size))",
        "of_segment(carry, xs, jnp.int32(size))",
        tests("test_packed", "no_step_has_met"),
    ),
    Fault(
        "what a tangent reads beyond the count is 0",
        "    return jnp.where(jnp.expand_dims(counts, tuple(range(1, a.ndim))), a, a[:1])\n",
        "    return a\n",
        tests("test_packed", "no_step_has_met"),
    ),
    Fault(
        "a lane at rest reads the inputs of another",
        "x=packing.pack_inputs(run.xs, valid),",
        "x=packing.pack(run.xs),",
        tests("test_packed", "at_rest"),
    ),
    Fault(
        "a lane with one sequence less reads zeros",
        "source = jnp.where(valid | self.spare, self.source, T * B)",
        "source = jnp.where(valid, self.source, T * B)",
        tests("test_packed", "one_sequence_less"),
    ),
    Fault(
        "the tangents that a user wrote are not looked at",
        "    if not op.differentiated:",
        "    if True:",
        tests("test_rows", "rows_that_meet"),
    ),
)
