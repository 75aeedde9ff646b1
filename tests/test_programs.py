"""Traced steps as data: how programs are made, printed, evaluated and cut; the table of primitives."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive

from jaxrnn.instruments.norms import norm_of_product_p
from jaxrnn.planning.contract import rows_by_weight_p
from jaxrnn.programs import primitives
from jaxrnn.programs.program import Rewriting, evaluate, letters, needed_for, reached_from
from jaxrnn.programs.tracing import flat_program, trace

W, h, x = (jnp.full(shape, value, jnp.float32) for shape, value in (((5, 5), 0.1), ((2, 5), 1.0), ((2, 5), 0.5)))


def step(h, x):
    """W is closed over; the nested jit is flattened."""
    return jax.jit(lambda a: jnp.tanh(a + x))(h @ W), jnp.exp(x) * 2.0


PRINTED = """\
consts: c:f32[5,5]
in:  a:f32[2,5] b:f32[2,5]
d:f32[2,5] = dot_general[1,0] a c
e:f32[2,5] = add d b
f:f32[2,5] = tanh e
g:f32[2,5] = exp b
h:f32[] = constant[2.0]
i:f32[2,5] = mul g h
out: f i"""


def test_a_program_is_printed_and_computes_what_the_function_does():
    program, shapes = trace(step, h, x)
    assert str(program) == PRINTED
    assert [a.shape for a in shapes] == [(2, 5), (2, 5)]
    known = program.consts | dict(zip(program.inputs, (h, x), strict=True))
    for got, want in zip(evaluate(program.ops, known, program.outputs), step(h, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)  # compiled together and apart


def test_what_depends_on_what():
    program, _ = trace(step, h, x)
    of = lambda numbers: "".join(sorted(map(letters, numbers)))
    names = {letters(number): number for number in program.kinds}
    assert of(reached_from(program.ops, [names["b"]])) == "befgi"
    assert of(program.fixed()) == "ch"
    assert [op.name for op in needed_for(program.ops, [names["i"]])] == ["exp", "constant", "mul"]
    assert [op.name for op in needed_for(program.ops, program.outputs, given={names["e"], names["i"]})] == ["tanh"]


def test_a_rewritten_program_keeps_its_numbers_and_takes_new_ones():
    program, _ = trace(step, h, x)
    rewriting = Rewriting(program)
    for op in program.ops:
        rewriting.ops.append(op)
    (new,) = rewriting.add("neg", lambda a: [-a], program.outputs[1:], [program.kinds[program.outputs[1]]])
    done = rewriting.done()._replace(outputs=[program.outputs[0], new])
    assert str(done) == PRINTED.replace("out: f i", "j:f32[2,5] = neg i\nout: f j")
    (negated,) = evaluate(done.ops, done.consts | dict(zip(done.inputs, (h, x), strict=True)), [new])
    np.testing.assert_array_equal(negated, -2 * jnp.exp(x))
    assert str(program) == PRINTED, "the program that was rewritten is as it was"


@pytest.mark.parametrize("number, name", [(1, "a"), (26, "z"), (27, "aa"), (52, "az"), (53, "ba"), (703, "aaa")])
def test_letters(number, name):
    assert letters(number) == name


def test_what_must_stay_in_one_piece_is_told_even_inside_a_branch():
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda a: (jnp.sin(a), a), lambda a, d: (d * jnp.cos(a),))
    assert trace(lambda a: jax.lax.cond(True, f, jnp.cos, a), 1.0) == (None, "custom_vjp_call")
    assert trace(lambda a: jax.pure_callback(np.sin, a, a), jnp.float32(1)) == (None, "pure_callback")
    program, _, _ = flat_program(lambda a: f(a), 1.0)
    assert [op.name for op in program.ops] == ["custom_vjp_call"]


def test_each_row_of_the_table_is_a_primitive_of_jax_or_ours():
    """Of any JAX that is supported: what 0.10 lacks is listed as new, and the newest has all."""
    gc.unfreeze()  # conftest.py has put aside what there was
    known = {primitive.name for primitive in gc.get_objects() if isinstance(primitive, Primitive)}
    gc.freeze()
    missing = primitives.PRIMITIVES.keys() - known - {*primitives.OURS}
    lacking = {*primitives.NEW} if jax.__version_info__ < (0, 12) else set()
    assert missing <= lacking, f"no primitives of JAX {jax.__version__}: {sorted(missing - lacking)}"
    assert {*primitives.NEW, *primitives.OURS} <= primitives.PRIMITIVES.keys()
    assert {rows_by_weight_p.name, norm_of_product_p.name, "add_pieces", "constant"} == {*primitives.OURS}


def test_the_table_answers_for_each_property_and_for_what_it_does_not_list():
    products = [name for name in primitives.PRIMITIVES if primitives.has(name, primitives.PRODUCT)]
    assert products == ["dot_general", "conv_general_dilated", "rows_by_weight"]
    sums = [name for name in primitives.PRIMITIVES if primitives.has(name, primitives.SUM)]
    assert sums == ["add", "add_any", "add_pieces"]
    assert primitives.has("tanh", primitives.CHEAP | primitives.MOVABLE)
    assert not primitives.has("dot_general", primitives.CHEAP)
    assert not any(primitives.has("scan", each) for each in primitives.Property)
