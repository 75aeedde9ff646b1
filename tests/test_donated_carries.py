"""The initial carry is the caller's own: donated to a program, it takes no parameter with it."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as jr
from tests.cases import CASES, CELLS, WRAPPERS, H, I

KINDS = ("elman", "lstm", "gru", "peephole_lstm", "cifg_lstm", "mgu", "ugrnn", "indrnn", "antisymmetric_rnn", "lem")
LEARNED = {kind: getattr(jr, kind)(I, H, learned_carry=True) for kind in KINDS}
MODELS = {
    **{f"{kind}, learned": cell for kind, cell in LEARNED.items()},
    "narrow": jr.lstm(I, H, learned_carry=True, param_dtype="bfloat16"),
    "projected": jr.lstm(I, H, learned_carry=True, projection_size=2),
    **{f"{kind}, wrapped": wrap(LEARNED["lstm"]) for kind, (wrap, _) in WRAPPERS.items()},
    "chain": jr.chain(LEARNED["gru"], jr.normalized(jr.elman(H, H, learned_carry=True)), jr.readout(H, 2)),
    "residual": jr.residual(jr.gru(I, I, learned_carry=True)),
    "stack": jr.stack(LEARNED["elman"], jr.bidirectional(jr.mgu(H, H, learned_carry=True), jr.lstm(H, H))),
    "tbptt": jr.tbptt(LEARNED["mgu"], window=2),
}
MODELS |= {name: cell for name, cell in CELLS.items() if not name.startswith("user")}
MODELS |= {case.name: case.layer for case in CASES if "user" not in case.name and case.layer.spec is not None}


@functools.partial(jax.jit, donate_argnums=0)
def consumed(a):
    return a + 1


@pytest.mark.parametrize("batch_shape", [(), (1,)])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_donated_carry_takes_nothing_with_it(model, batch_shape):
    params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(model.init, jax.random.key(0)))
    for a in jax.tree.leaves(model.initial_carry(params, batch_shape)):
        assert not a.is_deleted()  # nor is one part of the carry another
        consumed(a)
        assert a.is_deleted()
    assert not any(a.is_deleted() for a in jax.tree.leaves(params))


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_program_nothing_is_copied(kind):
    cell = LEARNED[kind]
    params = jax.eval_shape(cell.init, jax.random.key(0))
    run = jax.make_jaxpr(lambda params: jr.scan(cell).apply(params, jnp.ones((3, I))))
    assert "copy" not in str(run(params))
    assert "copy" not in str(jax.make_jaxpr(cell.initial_carry)(params))
