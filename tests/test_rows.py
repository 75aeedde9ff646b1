"""Whether a traced step treats each row of its batch by itself: what is let through, and what is not, by name."""

import jax
import jax.numpy as jnp
import pytest

from jaxrnn.programs.rows import counts_rows, mixes_rows
from jaxrnn.programs.tracing import trace
from tests.cases import draw

B, I, H = 5, 4, 3
W, TABLE, EACH_ROW = draw((I, H), 1), draw((6, H), 2), draw((B, I), 3)
KERNEL = draw((2, 1, 2), 4)


@jax.custom_jvp
def scaled(x):
    return 2 * x


@jax.custom_jvp
def centred_backwards(x):
    return 2 * x


scaled.defjvps(lambda d, made, x: 2 * d)
centred_backwards.defjvps(lambda d, made, x: d - d.mean(0))


def found(function, shape=(B, I), dtype=float):
    x = jnp.zeros(shape, dtype)
    program, _ = trace(lambda x: [function(x)], x)
    return mixes_rows(program, program.inputs)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.tanh(x @ W) * 2 + jnp.arange(H),
        lambda x: jax.nn.softmax(x, axis=1) - x.max(1, keepdims=True),
        lambda x: (W.T @ x.T).T,
        lambda x: jnp.einsum("bi,bj->bij", x, x).reshape(B, I * I),
        lambda x: jnp.concatenate([x, jnp.ones((B, 2))], axis=1)[:, ::-1],
        lambda x: jnp.cumsum(jax.nn.relu(x), axis=1) + jnp.pad(x, ((0, 0), (1, 0)))[:, :-1],
        lambda x: sum(jnp.split(x[:, None, :], 2, axis=2)).sum((1, 2)),
        lambda x: jnp.where(x > 0, x, jnp.zeros_like(x)),
        lambda x: jnp.stack([x, jnp.ones((B, I))]).sum(0) + jnp.stack([jnp.zeros((1, I)), jnp.ones((1, I))], 1)[:, 0],
        lambda x: jnp.stack([x, 2 * x], axis=-1)[..., 0],
        lambda x: jax.lax.conv_general_dilated(x[:, None], KERNEL, (1,), "SAME"),
        lambda x: jnp.ones((B, H)),
        lambda x: scaled(x) + jax.nn.softplus(x),
    ],
)
def test_rows_by_themselves(function):
    assert found(function) is None


def test_a_table_read_by_row():
    assert found(lambda tokens: TABLE[tokens], (B,), int) is None


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x - x.mean(0), "reduce_sum over the batch"),
        (lambda x: x.max(), "reduce_max over the batch"),
        (lambda x: x @ x.T, "dot_general"),
        (lambda x: draw((B, B)) @ x, "dot_general over the batch"),
        (lambda x: x + EACH_ROW, "add of the batch and what differs from row to row"),
        (lambda x: jnp.einsum("bi,bi->b", x, EACH_ROW), "dot_general of the batch and what differs from row to row"),
        (lambda x: jax.lax.pad(x, 0.0, ((1, -1, 0), (0, 0, 0))), "pad of the batch"),
        (lambda x: jax.lax.reshape(x[:, None] + jnp.zeros((B, 1)), (B, B, I), (1, 0, 2)), "reshape in another order"),
        (
            lambda x: x + jax.lax.pad(jnp.ones((B, I)), 0.0, ((1, -1, 0), (0, 0, 0))),
            "add of the batch and what differs",
        ),
        (centred_backwards, "reduce_sum over the batch"),
        (lambda x: jnp.cumsum(x, axis=0), "cumsum along the batch"),
        (lambda x: jnp.stack([x, EACH_ROW]).sum(0), "stack of the batch and what differs from row to row"),
        (lambda x: jnp.stack([x, 2 * x]), "an output that does not lead with the batch"),
        (lambda x: x[::-1], "rev along the batch"),
        (lambda x: jnp.concatenate([x[1:], x[:1]]), "slice of the batch"),
        (lambda x: jnp.concatenate([x, x]), "concatenate along the batch"),
        (lambda x: x.reshape(B * I), "reshape of the batch with another axis"),
        (lambda x: x + x[0], "slice of the batch"),
        (lambda x: jnp.sort(x, axis=0), "sort"),
        (lambda x: x[jnp.argsort(EACH_ROW[:, 0])], "gather"),
        (lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), "slice of the batch"),
        (lambda x: x.T, "an output that does not lead with the batch"),
        (lambda x: jnp.arange(B) + 0.0, "an output that does not lead with the batch"),
    ],
)
def test_rows_that_meet(function, reason):
    assert found(function).startswith(reason)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: jax.nn.softplus(x @ W) * 2 + jnp.zeros_like(x[:, :H]), None),
        (lambda x: x / len(x), "a constant"),
        (lambda x: scaled(x) + jax.nn.softplus(x / len(x)), "a constant"),
        (lambda x: x ** len(x), "integer_pow"),
        (lambda x: x / jnp.ones_like(x).sum(0), "reduce_sum"),
        (lambda x: x if len(x) < B else jnp.sin(x), "other operations"),
    ],
)
def test_what_depends_on_how_many_rows_there_are(function, reason):
    of_batch, of_fewer = (trace(lambda x: [function(x)], jnp.zeros((rows, I)))[0] for rows in (B, 2))
    assert mixes_rows(of_batch, of_batch.inputs) is None
    assert counts_rows(of_batch, of_fewer) == reason
