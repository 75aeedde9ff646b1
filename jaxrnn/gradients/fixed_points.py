"""Fixed points of a cell under a constant input, and the linear dynamics around them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree, expect_cell
from jaxrnn._checks import check_carry, check_choice, check_params
from jaxrnn.gradients._state_space import StateSpace, for_each_state, one_for_each, state_space
from jaxrnn.running.scan import shapes_of_params


class FixedPoints(NamedTuple):
    """What ``find_fixed_points`` found: M points, the slowest first."""

    carry: PyTree  # each leaf (M, …)
    speed: jax.Array  # (M,): q = ½ ‖F(h) - h‖²
    hits: jax.Array  # (M,): how many of the starts ended there
    start: jax.Array  # (M,): the index of the start that came nearest, and of its input where each start has one


@checks_arguments
def find_fixed_points(
    cell: Cell,
    params: PyTree,
    starts: PyTree,
    x: PyTree,
    *,
    method: str = "adam",
    steps: int | None = None,
    learning_rate: float = 0.1,
    tolerance: float = 1e-8,
    duplicates: float = 1e-2,
    outliers: float | None = 10.0,
    batch_size: int = 64,
) -> FixedPoints:
    """Where the state stays, or nearly stays, while the input is constant.

        q(h) = ½ ‖F(h, x) - h‖²        F: one step of the cell; q = 0 is a fixed point, a small q a slow point

    q is minimised from many starts at once; what is too fast, far from all starts, or found before is left out. The
    memories of xLSTM (``slstm``, ``mlstm``) are looked at as they are, not in units of exp(m).

    Args:
        cell: a Cell whose carry holds real and complex numbers alone.
        starts: the carries to start from, each leaf (M0, …): states of a run (``trace_gates``, or ys where they are
            the state), with some noise on them.
        params: of the cell.
        x: the constant input of one step, (I,), or one for each start, (M0, I): ``x[found.start]`` are then those of
            the points.
        method: "adam" follows the gradient of q, which finds slow points too and stays in the basin of its
            start. "newton" solves F(h) = h by Levenberg and Marquardt's damped Newton steps: fewer, each with a linear
            system of N numbers. Either may stall at a kink of F, as ReLU units have: of such a cell give states too
            that have run on under x until they rest, which are near all that is stable.
        steps: of the method; None means 2,000 for "adam", 100 for "newton".
        learning_rate: of "adam", falling to 0 along a cosine.
        tolerance: the largest q that counts as a fixed point. Rounding leaves up to ½ N (ε |h|)²: of 50 numbers of
            size 1 in float32 about 1e-13.
        duplicates: points within this distance of a slower one, Euclidean over the whole carry, are that one. So a
            line of fixed points is shown by points at least so far apart. Under different inputs two points are two.
        outliers: points farther from the starts' mean than this many times the starts' own mean distance are
            left out; None keeps them.
        batch_size: starts that are run at once.

    Returns:
        :class:`FixedPoints`, M = 0 where none is slow enough. Not for use inside ``jit``: M depends on values. It
        jits its own loop.

    Raises:
        ValueError, TypeError: arguments that do not fit, a Layer, a carry that is empty or has integer parts; a
            FloatingPointError for starts or inputs that are not finite, or from which one step is not.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.elman(1, 1, recurrent_init="identity")  # h_t = tanh(2 h_{t-1}): 0 and ±0.9575
        >>> params = cell.init(jax.random.key(0))._replace(W_hh=jnp.array([[2.0]]))
        >>> starts = jnp.linspace(-1, 1, 9)[:, None]
        >>> found = jr.gradients.find_fixed_points(cell, params, starts, jnp.zeros(1), method="newton")
        >>> sorted((1000 * found.carry[:, 0]).round().astype(int).tolist())
        [-958, 0, 958]

    References:
        Sussillo & Barak, "Opening the black box: low-dimensional dynamics in high-dimensional recurrent neural
        networks", Neural Computation 25, 2013.
        Golub & Sussillo, "FixedPointFinder: a Tensorflow toolbox for identifying and characterizing fixed points in
        recurrent neural networks", JOSS 3, 2018 (filters).
    """
    who = "find_fixed_points"
    expect_cell(who, cell)
    check_choice(who, "method", method, ("adam", "newton"))
    steps = (2000 if method == "adam" else 100) if steps is None else steps
    check_params(who, params, shapes_of_params(cell))
    if not (learning_rate > 0 and tolerance > 0 and duplicates >= 0 and (outliers is None or outliers > 0)):
        raise ValueError(
            f"{who}: learning_rate, tolerance and outliers must be positive and duplicates not negative, got "
            f"{learning_rate}, {tolerance}, {outliers} and {duplicates}."
        )
    space = state_space(who, cell, params)
    if scaled := any(map(_has_units, jax.tree.leaves(space.bare, is_leaf=_has_units))):
        tree, flat = space.tree, space.flat
        space = space._replace(step=lambda h, x: flat(_in_units(cell.step(params, tree(h), x)[0], 0.0)))
    leaves = jax.tree.leaves(starts)
    if any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves((params, starts, x))):
        raise TypeError(f"{who}: how many points there are depends on values, so it cannot be jitted; call it outside.")
    count = np.shape(leaves[0])[0] if leaves and np.ndim(leaves[0]) else 0
    check_carry(who, starts, jax.eval_shape(lambda p: cell.initial_carry(p, (count,)), params), (count,), "starts")
    if count == 0:
        raise ValueError(f"{who}: starts holds no state; give each leaf (M0, …) with at least one.")
    h0 = space.flat(_in_units(starts, 0.0))
    if not bool(jnp.isfinite(h0).all()):
        raise FloatingPointError(f"{who}: {int((~jnp.isfinite(h0).all(1)).sum())} of {count} starts are not finite.")
    each = one_for_each(who, cell, x, (count,), "start")
    if not all(np.isfinite(np.asarray(a, float)).all() for a in jax.tree.leaves(x)):
        raise FloatingPointError(f"{who}: x is not finite.")
    search = _adam(space, steps, learning_rate) if method == "adam" else _newton(space, steps)
    speeds = jax.vmap(lambda h, x: _speed(space, h, x), in_axes=(0, 0 if each else None))

    @jax.jit
    def from_all(h0, x):
        if each:
            h = jax.lax.map(lambda of_one: search(*of_one), (h0, x), batch_size=batch_size)
        else:
            h = jax.lax.map(lambda h: search(h, x), h0, batch_size=batch_size)
        return h, speeds(h, x), speeds(h0, x)

    h, speed, speed_at_start = from_all(h0, x)
    if lost := np.flatnonzero(~np.isfinite(speed_at_start)).tolist():
        raise FloatingPointError(
            f"{who}: one step from {len(lost)} of {count} starts is not finite, first from {lost[0]}; look at the "
            f"parameters, at the size of this state, and at its input: a token out of an embedding's range is NaN."
        )
    inputs = _alike(x) if each else np.zeros(count, int)
    kept, hits = _kept(np.asarray(h0), np.asarray(h), np.asarray(speed), inputs, tolerance, duplicates, outliers)
    found = space.tree(h[kept])
    if scaled:
        x = jax.tree.map(lambda a: jnp.asarray(a)[kept], x) if each else for_each_state(who, cell, x, (len(kept),))
        found = _in_units_of_step(cell, params, found, x)
    return FixedPoints(found, speed[kept], jnp.asarray(hits), jnp.asarray(kept))


class LinearAnalysis(NamedTuple):
    """What ``linear_analysis`` found at each point, ∂h_t = A ∂h_{t-1} + B ∂x_t."""

    by_state: jax.Array  # A (*B, N, N)
    by_input: jax.Array  # B (*B, N, I): the features of x side by side
    eigenvalues: jax.Array  # (*B, N) complex, those of A, the largest modulus first
    eigenvectors: jax.Array  # (*B, N, N) complex, one a column
    stable: jax.Array  # (*B,): whether all moduli are below 1
    time_constants: jax.Array  # (*B, N) steps: 1 / |log |λ||, in which a mode changes by a factor of e


@checks_arguments
def linear_analysis(cell: Cell, params: PyTree, carry: PyTree, x: PyTree) -> LinearAnalysis:
    """The linear dynamics of a cell around states, as around its fixed points.

        h_t - h* ≈ A (h_{t-1} - h*) + B (x_t - x*)        A = ∂F/∂h, B = ∂F/∂x at h*, x*

    Args:
        cell: a Cell whose carry holds real and complex numbers alone, N in all as in :func:`step_jacobian`.
        params: of the cell.
        carry: the states, each leaf (*B, …), such as ``FixedPoints.carry``.
        x: the input of one step, (I,) for all states or (*B, I), one for each; an array of floats.

    Returns:
        A :class:`LinearAnalysis`.

    Raises:
        ValueError, TypeError: as :func:`step_jacobian`; inputs that are not one array of floats.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.elman(1, 1)  # h_t = tanh(2 h_{t-1})
        >>> params = cell.init(jax.random.key(0))._replace(W_hh=jnp.array([[2.0]]))
        >>> around = jr.gradients.linear_analysis(cell, params, jnp.array([[0.0], [0.9575]]), jnp.zeros(1))
        >>> around.eigenvalues[:, 0].real.round(2).tolist(), around.stable.tolist()
        ([2.0, 0.17000000178813934], [False, True])

    Reference:
        Sussillo & Barak, "Opening the black box: low-dimensional dynamics in high-dimensional recurrent neural
        networks", Neural Computation 25, 2013.
    """
    who = "linear_analysis"
    expect_cell(who, cell)
    check_params(who, params, shapes_of_params(cell))
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        came = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"{who}: x must be one array of floats, the input of one step, got {came}.")
    space = state_space(who, cell, params)
    space.check(who, carry)
    h = space.flat(carry)
    x = for_each_state(who, cell, x, h.shape[:-1])
    A = space.jacobian(h, x)[1]
    features = int(np.prod(x.shape[h.ndim - 1 :], dtype=int))
    _, push = jax.linearize(lambda x: space.step(h, x), x)
    basis = jnp.eye(features, dtype=x.dtype).reshape(features, *x.shape[h.ndim - 1 :])
    B = jax.vmap(lambda e: push(jnp.broadcast_to(e, x.shape)), out_axes=-1)(basis)
    eigenvalues, eigenvectors = jnp.linalg.eig(A)
    order = jnp.argsort(-jnp.abs(eigenvalues), axis=-1)
    eigenvalues = jnp.take_along_axis(eigenvalues, order, axis=-1)
    eigenvectors = jnp.take_along_axis(eigenvectors, order[..., None, :], axis=-1)
    moduli = jnp.abs(eigenvalues)
    return LinearAnalysis(A, B, eigenvalues, eigenvectors, (moduli < 1).all(-1), 1 / jnp.abs(jnp.log(moduli)))


def _speed(space: StateSpace, h: jax.Array, x: PyTree) -> jax.Array:
    return 0.5 * jnp.sum(jnp.square(space.step(h, x) - h))


def _has_units(part: Any) -> bool:
    return hasattr(part, "in_units")


def _in_units(carry: PyTree, m: float) -> PyTree:
    """The same state, the memories of xLSTM in units of exp(m).

    In those of the step, m is a maximum: above it q does not fall with m, so that a search would stay there.
    """
    return jax.tree.map(lambda part: part.in_units(m) if _has_units(part) else part, carry, is_leaf=_has_units)


def _in_units_of_step(cell: Cell, params: PyTree, carry: PyTree, x: PyTree) -> PyTree:
    """Fixed points in the units in which the step leaves them, so that the carry is fixed, too, not the state alone."""
    new, _ = cell.step(params, _in_units(carry, -30.0), x)  # from a lower m, which does not become the new one
    same = lambda part, stepped: part.in_units(stepped.m) if _has_units(part) else part
    return jax.tree.map(same, carry, new, is_leaf=_has_units)


def _adam(space: StateSpace, steps: int, learning_rate: float) -> Any:
    import optax  # here: `import jaxrnn` stays light

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def search(h, x):
        def one_step(state, _):
            h, opt_state = state
            slope = jax.grad(lambda h: _speed(space, h, x))(h)
            with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to a power of its own int32
                updates, opt_state = optimizer.update(slope, opt_state)
            return (optax.apply_updates(h, updates), opt_state), None

        return jax.lax.scan(one_step, (h, optimizer.init(h)), length=steps)[0][0]

    return search


def _newton(space: StateSpace, steps: int) -> Any:
    """Damped Gauss-Newton on r(h) = F(h) - h: a step that makes ‖r‖ smaller is taken and trusted more, else less."""

    def search(h, x):
        def one_step(state, _):
            h, damping = state
            new, A = space.jacobian(h, x)
            r, J = new - h, A - jnp.eye(space.size, dtype=h.dtype)
            normal = J.T @ J
            scale = jnp.trace(normal) / space.size
            delta = jnp.linalg.solve(normal + damping * scale * jnp.eye(space.size, dtype=h.dtype), -J.T @ r)
            better = _speed(space, h + delta, x) < 0.5 * jnp.sum(r * r)
            damping = jnp.clip(jnp.where(better, damping / 3, damping * 3), 1e-7, 1e7)
            return (jnp.where(better, h + delta, h), damping), None

        return jax.lax.scan(one_step, (h, jnp.asarray(1e-2, h.dtype)), length=steps)[0][0]

    return search


def _alike(x: PyTree) -> np.ndarray:
    """(M0,): a number for each start, the same where the inputs (M0, …) are."""
    found = []
    for a in jax.tree.leaves(x):
        rows = np.asarray(a).reshape(len(a), -1)
        found.append(np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1))
    return np.unique(np.stack(found, axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def _kept(
    starts: np.ndarray,
    h: np.ndarray,
    speed: np.ndarray,
    inputs: np.ndarray,
    tolerance: float,
    duplicates: float,
    outliers: float | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the points that are slow, near enough and different, the slowest first, and the hits of each.

    ``inputs`` (M0,) are equal where two starts have the same input: without that they do not end in the same point.
    """
    from scipy.spatial import cKDTree

    good = np.isfinite(h).all(1) & (speed <= tolerance)
    if outliers is not None:
        middle = starts.mean(0)
        reach = np.linalg.norm(starts - middle, axis=1).mean()
        if reach > 0:  # a single start, or equal ones, have no distance to compare with
            good &= np.linalg.norm(np.where(good[:, None], h, middle) - middle, axis=1) <= outliers * reach
    index = np.flatnonzero(good)
    if not len(index):
        return index, index
    index = index[np.argsort(speed[index], kind="stable")]
    tree = cKDTree(h[index])
    points: list[int] = []
    hits: list[int] = []
    free = np.ones(len(index), bool)
    for place in range(len(index)):  # the slowest first: each takes all that are near and not taken yet
        if free[place]:
            near = np.array(tree.query_ball_point(h[index[place]], duplicates), int)
            near = near[inputs[index[near]] == inputs[index[place]]]
            points.append(index[place])
            hits.append(int(free[near].sum()))
            free[near] = False
    return np.array(points), np.array(hits)
