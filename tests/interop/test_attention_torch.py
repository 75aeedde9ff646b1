"""jr.attend against torch's scaled_dot_product_attention, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw

torch = pytest.importorskip("torch")
S, T, B, M, V = 7, 4, 3, 5, 2
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32, sums of a few numbers


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_scaled_dot_product_attention(scale, masked):
    query, memory, values = draw((T, B, M), 1), draw((S, B, M), 2), draw((S, B, V), 3)
    mask = np.random.default_rng(0).random((S, B)) < 0.6 if masked else np.ones((S, B), bool)
    mask[0] = True  # with nothing to attend to torch has NaN

    def loss(query, memory, values):
        context = jr.attend(query, memory, values=values, mask=jnp.asarray(mask), scale=scale).context
        return (context**2).sum(), context

    (_, ours), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(query, memory, values)
    theirs = [torch.tensor(np.asarray(a).swapaxes(0, 1), requires_grad=True) for a in (query, memory, values)]
    on = torch.tensor(np.broadcast_to(mask.T[:, None], (B, T, S)).copy())
    context = torch.nn.functional.scaled_dot_product_attention(*theirs, attn_mask=on, scale=scale)
    np.testing.assert_allclose(ours, context.detach().numpy().swapaxes(0, 1), **CLOSE)
    (context**2).sum().backward()
    for got, want in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(got, want.grad.numpy().swapaxes(0, 1), **CLOSE)
