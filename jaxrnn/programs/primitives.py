"""The table of primitives: what the passes of a plan, and the instruments, know of each.

One row a primitive, by its name in a jaxpr. What has no row (a ``cond``, an inner scan, a sort …) is done once and
where the user put it. To let a pass treat a new primitive as it treats another, give it the same row.
"""

from __future__ import annotations

import enum


class Property(enum.Flag):
    """What may hold of a primitive.

    CHEAP: costs about as much as reading its operands, so the backward pass may compute it again; it may move, too.
    MOVABLE: batches and transposes as it is, so it may be done for all steps at once, outside the loop.
    PRODUCT: a product of matrices or a convolution: what it pays to move, and what reads weights.
    SUM: the sum of two.
    STRETCHES: elementwise in two operands; an axis of size 1 is stretched to the other's.
    CAST: the same values, in another dtype or another buffer.
    VIEW: slices, reshapes or transposes its one operand.
    INDIVISIBLE: a step that holds it runs as plain ``lax.scan``: the user's own backward rules, which autodiff must
        meet where they stand, and callbacks, whose number and order are the user's.
    """

    CHEAP = enum.auto()
    MOVABLE = enum.auto()
    PRODUCT = enum.auto()
    SUM = enum.auto()
    STRETCHES = enum.auto()
    CAST = enum.auto()
    VIEW = enum.auto()
    INDIVISIBLE = enum.auto()


CHEAP, MOVABLE, PRODUCT, SUM, STRETCHES, CAST, VIEW, INDIVISIBLE = Property

PRIMITIVES = {
    # products
    "dot_general": PRODUCT | MOVABLE,
    "conv_general_dilated": PRODUCT | MOVABLE,
    "rows_by_weight": PRODUCT,  # ours (planning/contract.py), made by the last pass: it stands where it should
    "norm_of_product": MOVABLE,  # ours (instruments/norms.py); planning/hoist.py knows when moving it pays
    # arithmetic of two
    "add": CHEAP | SUM | STRETCHES,
    "add_any": CHEAP | SUM | STRETCHES,
    "add_pieces": CHEAP | SUM,  # ours (planning/join_pieces.py): pieces are added to a whole
    "sub": CHEAP | STRETCHES,
    "mul": CHEAP | STRETCHES,
    "div": CHEAP | STRETCHES,
    "rem": CHEAP,
    "max": CHEAP,
    "min": CHEAP,
    "pow": CHEAP,
    "atan2": CHEAP,
    # functions of one
    "neg": CHEAP,
    "sign": CHEAP,
    "abs": CHEAP,
    "integer_pow": CHEAP,
    "square": CHEAP,
    "one_minus_square": CHEAP,
    "polynomial": CHEAP,
    "sqrt": CHEAP,
    "rsqrt": CHEAP,
    "cbrt": CHEAP,
    "exp": CHEAP,
    "exp2": CHEAP,
    "expm1": CHEAP,
    "log": CHEAP,
    "log1p": CHEAP,
    "log2": CHEAP,
    "logistic": CHEAP,
    "sin": CHEAP,
    "cos": CHEAP,
    "tan": CHEAP,
    "asin": CHEAP,
    "acos": CHEAP,
    "atan": CHEAP,
    "sinh": CHEAP,
    "cosh": CHEAP,
    "tanh": CHEAP,
    "asinh": CHEAP,
    "acosh": CHEAP,
    "atanh": CHEAP,
    "erf": CHEAP,
    "erfc": CHEAP,
    "erf_inv": CHEAP,
    "floor": CHEAP,
    "ceil": CHEAP,
    "round": CHEAP,
    "clamp": CHEAP,
    "real": CHEAP,
    "imag": CHEAP,
    "conj": CHEAP,
    # comparisons, logic, choice
    "is_finite": CHEAP,
    "eq": CHEAP,
    "ne": CHEAP,
    "lt": CHEAP,
    "le": CHEAP,
    "gt": CHEAP,
    "ge": CHEAP,
    "not": CHEAP,
    "and": CHEAP,
    "or": CHEAP,
    "xor": CHEAP,
    "select_n": CHEAP,
    # the same values elsewhere
    "convert_element_type": CHEAP | CAST,
    "copy": CHEAP | CAST,
    "stop_gradient": CHEAP,
    "slice": CHEAP | VIEW,
    "split": CHEAP | VIEW,
    "reshape": CHEAP | VIEW,
    "squeeze": CHEAP | VIEW,
    "transpose": CHEAP | VIEW,
    "broadcast_in_dim": CHEAP,
    "rev": CHEAP,
    "stack": CHEAP,
    "unstack": CHEAP,
    "concatenate": CHEAP,
    "pad": CHEAP,
    # values made of nothing
    "constant": CHEAP,  # ours (programs/tracing.py): a literal of the step
    "iota": CHEAP,
    # reductions
    "reduce_sum": CHEAP,
    "reduce_max": CHEAP,
    "reduce_min": CHEAP,
    "reduce_and": CHEAP,
    "reduce_or": CHEAP,
    "reduce_prod": CHEAP,
    "cumsum": CHEAP,
    "argmax": CHEAP,
    "argmin": CHEAP,
    # what keeps a step in one piece
    "custom_vjp_call": INDIVISIBLE,
    "pure_callback": INDIVISIBLE,
    "io_callback": INDIVISIBLE,
    "debug_callback": INDIVISIBLE,
}

OURS = ("rows_by_weight", "norm_of_product", "add_pieces", "constant")  # the rows that are no primitives of JAX
NEW = ("log2", "one_minus_square", "polynomial")  # those that the oldest supported JAX, 0.10, lacks


def has(name: str, properties: Property) -> bool:
    """Whether the primitive has one of the properties."""
    return bool(PRIMITIVES.get(name, Property(0)) & properties)
