"""Step Jacobians ∂h_t/∂h_{t-1}, their products over a lag, and what they say about the gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree, expect_cell
from jaxrnn._checks import check_finite, check_params
from jaxrnn.devices.placement import vary_alike
from jaxrnn.gradients._state_space import for_each_state, run_of, state_space
from jaxrnn.running.scan import shapes_of_params


@checks_arguments
def step_jacobian(cell: Cell, params: PyTree, carry: PyTree, x: PyTree) -> jax.Array:
    """The Jacobian of one step by the state that it starts from.

        J = ∂h_t / ∂h_{t-1}       h: all leaves of the carry side by side, N real numbers (an LSTM's
                                 are h, then c; of a complex leaf the real parts, then the imaginary ones)

    Args:
        cell: a Cell whose carry holds real and complex numbers alone.
        params, carry: as for ``cell.step``, each leaf of the carry (*B, …).
        x: the input of one step, (*B, I), or (I,) for all states.

    Returns:
        (*B, N, N), rows for h_t and columns for h_{t-1}.

    Raises:
        TypeError, ValueError: a Layer, a carry that is empty or has integer parts, an x of another shape.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.elman(3, 2, activation="identity", recurrent_init="identity")
        >>> jr.gradients.step_jacobian(cell, cell.init(jax.random.key(0)), jnp.zeros(2), jnp.ones(3)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    expect_cell("step_jacobian", cell)
    check_params("step_jacobian", params, shapes_of_params(cell))
    space = state_space("step_jacobian", cell, params)
    space.check("step_jacobian", carry)
    h = space.flat(carry)
    return space.jacobian(h, for_each_state("step_jacobian", cell, x, h.shape[:-1]))[1]


@checks_arguments
def log_singular_values(cell: Cell, params: PyTree, xs: PyTree, carry: PyTree = None, *, lag: int = 1) -> jax.Array:
    """The logarithms of the singular values of the products of ``lag`` step Jacobians along a run.

        P_t = J_t J_{t-1} … J_{t-lag+1} = ∂h_t / ∂h_{t-lag}        log σ_1(P_t) ≥ … ≥ log σ_N(P_t)

    A gradient over that lag shrinks or grows by a factor between σ_N and σ_1.

    Args:
        cell: a Cell whose carry holds real and complex numbers alone, N in all, a complex one counted as two.
        params, xs, carry: as for ``jr.scan(cell).apply``: xs (T, *B, I); None is the initial carry.
        lag: the steps of a product. Products follow each other and the last ends at step T - 1: of the first
            ``T % lag`` steps only the states count.

    Returns:
        (T // lag, *B, N), natural logarithms, -inf where a direction is lost exactly, as by a dead unit (a product that
        is singular in any other way has a very small number there, by rounding). Nothing overflows or vanishes, however
        long the lag, as long as the entries of each Jacobian lie within 80 powers of e of each other: products are kept
        as Q·exp(d)·R with an orthogonal Q, logarithms d and a triangular R of moderate size. Singular values within √ε
        of the largest are those of an exact decomposition up to rounding; the smaller ones are close where they lie
        apart from each other.

    Raises:
        ValueError, TypeError: a lag that is not a positive int or longer than the sequence, a Layer, a carry that is
            empty or has integer parts; outside ``jit`` a FloatingPointError where a state is not finite.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.elman(3, 2, activation="identity", recurrent_init="identity")
        >>> params = cell.init(jax.random.key(0))._replace(W_hh=jnp.diag(jnp.array([0.5, 2.0])))
        >>> jr.gradients.log_singular_values(cell, params, jnp.ones((7, 3)), lag=3).round(2).tolist()  # ± 3 log 2
        [[2.0799999237060547, -2.0799999237060547], [2.0799999237060547, -2.0799999237060547]]

    References:
        Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
        Stewart, "On graded QR decompositions of products of matrices", ETNA 3, 1995.
    """
    who = "log_singular_values"
    space, h, T = run_of(who, cell, params, xs, carry)
    if lag > T:
        raise ValueError(f"{who}: lag={lag} is longer than the sequence, T = {T}; give at most lag={T}.")
    first = T % lag
    parts = jax.tree.map(lambda a: jnp.asarray(a)[first:].reshape(T // lag, lag, *a.shape[1:]), xs)

    def advance(h, x):
        h = space.step(h, x)
        return h, jnp.isfinite(h).all()

    def multiply(state, x):
        h, product = state
        h, push = space.linear(h, x)
        return (h, graded_product(push(product[0]), *product)), jnp.isfinite(h).all()

    def window(h, xs):
        identity, _ = vary_alike(jnp.broadcast_to(jnp.eye(space.size, dtype=h.dtype), (*h.shape, space.size)), h)
        (h, product), finite = jax.lax.scan(multiply, (h, (identity, jnp.zeros_like(h), identity)), xs)
        return h, (log_svd(*product[1:]), finite)

    h, before = jax.lax.scan(advance, h, jax.tree.map(lambda a: jnp.asarray(a)[:first], xs))
    _, (values, finite) = jax.lax.scan(window, h, parts)
    check_states(who, jnp.concatenate([before, finite.reshape(-1)]))
    return values


def check_states(who: str, finite: jax.Array) -> None:
    """``finite`` (T,) is False where a state of the run is not."""
    states = jnp.where(finite, 0.0, jnp.nan)
    check_finite(who, "the state", states, "look at the inputs and the parameters; a run that explodes ends so")


def graded_product(
    pushed: jax.Array, Q: jax.Array, d: jax.Array, R: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(Q, d, R) of J·Q·diag(exp d)·R, where ``pushed`` is J Q; (*B, N, N), (*B, N), (*B, N, N).

    The columns of J·Q are put in the order of their size, exp(d) included, and decomposed without it: scaling a column
    changes no direction in Q, so exp(d) is never computed but as a ratio of at most about 1.
    """
    size = d + _log(jnp.linalg.norm(pushed, axis=-2))
    order = jnp.argsort(-size, axis=-1)
    Q, upper = jnp.linalg.qr(jnp.take_along_axis(pushed, order[..., None, :], axis=-1))
    d, ratio = _graded(upper, jnp.take_along_axis(d, order, axis=-1))
    return Q, d, ratio @ jnp.take_along_axis(R, order[..., :, None], axis=-2)


def log_svd(d: jax.Array, R: jax.Array, sweeps: int = 12) -> jax.Array:
    """The logarithms of the singular values of diag(exp d)·R, largest first.

    What is within √ε of the largest, from a singular value decomposition of the scaled matrix. The rest from QR sweeps:
    a decomposition of the transpose, over and over, comes ever nearer to diagonal, with the small entries accurate to
    their own size.
    """
    top = jnp.max(d, axis=-1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    direct = _log(jnp.linalg.svd(jnp.exp(d - top)[..., None] * R, compute_uv=False)) + top

    def sweep(state, _):
        d, R = state
        upper = jnp.linalg.qr(jnp.swapaxes(R, -1, -2), mode="r")
        return _graded(upper, d), None

    (d, _), _ = jax.lax.scan(sweep, (d, R), length=sweeps)
    swept = -jnp.sort(-d, axis=-1)
    near = direct - direct[..., :1] > 0.5 * jnp.log(jnp.finfo(d.dtype).eps)
    return jnp.where(near, direct, jnp.minimum(swept, direct[..., :1]))


def _graded(upper: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """upper·diag(exp d) as diag(exp d')·R, R triangular with ±1 on its diagonal; d' is -inf where a row is 0.

    Of a singular matrix a row may be 0 on the diagonal alone: it is scaled by its largest entry.
    """
    diagonal = jnp.diagonal(upper, axis1=-2, axis2=-1)
    largest = jnp.max(d[..., None, :] + _log(jnp.abs(upper)), axis=-1)
    singular = diagonal == 0
    grown = jnp.where(singular, largest, d + _log(jnp.abs(diagonal)))
    dead = grown == -jnp.inf
    own = jnp.where(singular, largest, d)
    own = jnp.where(own == -jnp.inf, 0.0, own)[..., :, None]
    ratio = jnp.exp(jnp.clip(d[..., None, :] - own, max=80.0))
    R = upper / jnp.where(singular, 1.0, jnp.abs(diagonal))[..., None] * ratio
    return grown, jnp.where(dead[..., None], jnp.eye(d.shape[-1], dtype=d.dtype), R)


def _log(a: jax.Array) -> jax.Array:
    """log, -inf at 0 without a NaN in derivatives."""
    return jnp.where(a == 0, -jnp.inf, jnp.log(jnp.where(a == 0, 1.0, a)))


@checks_arguments
def spectral_radius(matrix: jax.Array) -> jax.Array:
    """The largest modulus of a matrix's eigenvalues.

        ρ(W) = max |λ_i(W)|

    A linear recurrence h_t = W h_{t-1} dies out where ρ < 1 and explodes where ρ > 1. In code a product is h @ W, whose
    matrix is Wᵀ; its eigenvalues are the same.

    Args:
        matrix: (…, N, N), such as a recurrent weight or ``jr.gradients.step_jacobian``'s.

    Returns:
        (…), not negative.

    Raises:
        ValueError: a matrix that is not square, as those of the gates side by side are not: take one gate's block.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> jr.gradients.spectral_radius(jnp.array([[0.0, 2.0], [-2.0, 0.0]])).round(3).item()  # ±2i
        2.0
    """
    matrix = jnp.asarray(matrix)
    shape = matrix.shape
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError(
            f"spectral_radius: expected matrix to be square, (…, N, N), got {shape}; of gates side by side take one "
            f"block, or the whole step's Jacobian, jr.gradients.step_jacobian."
        )
    return jnp.max(jnp.abs(jnp.linalg.eigvals(matrix)), axis=-1)
