"""Cell and Layer, the two records that all of jaxrnn takes and returns, and what their functions have to be.

Shapes, everywhere in this library:

    T   time, always axis 0            I   input features
    *B  any number of batch axes       H   hidden units
    O   output features                x   (*B, I) one step    xs  (T, *B, I) a sequence
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrnn._affine import with_affine
from jaxrnn._arguments import checks_arguments
from jaxrnn._checks import check_key
from jaxrnn._spec import Spec, known_by_spec

PyTree = Any


class InitFn(Protocol):
    """``init(key) -> params``: draws the parameters."""

    def __call__(self, key: jax.Array, /) -> PyTree:
        """Draw the parameters.

        Args:
            key: a key, of shape ().

        Returns:
            params, any pytree of arrays.
        """


class InitialCarryFn(Protocol):
    """``initial_carry(params, batch_shape=()) -> carry``: where a run starts, and starts again at resets."""

    def __call__(self, params: PyTree, /, batch_shape: tuple[int, ...] = ()) -> PyTree:
        """Make the initial carry.

        Args:
            params: what ``init`` returned; a learned initial carry is part of them.
            batch_shape: ``*B``; () for a single sequence.

        Returns:
            carry, any pytree; each leaf leads with ``*B``. Its dtypes are those of the whole run.
        """


class StepFn(Protocol):
    """``step(params, carry, x) -> (carry, y)``: one time step."""

    def __call__(self, params: PyTree, carry: PyTree, x: PyTree, /) -> tuple[PyTree, PyTree]:
        """Take one step.

        Args:
            params: what ``init`` returned.
            carry: each leaf (*B, …).
            x: (*B, I), or whatever ``x_ndim`` says.

        Returns:
            ``(carry, y)``: a carry of the structure, shapes and dtypes of the one given, and y (*B, O) or a pytree
            whose leaves lead with ``*B``.
        """


class NoisyStepFn(Protocol):
    """``step(params, carry, x, noise=None) -> (carry, y)``: one time step of a cell that has ``noise``."""

    def __call__(self, params: PyTree, carry: PyTree, x: PyTree, noise: PyTree = None, /) -> tuple[PyTree, PyTree]:
        """Take one step, as :class:`StepFn`; ``noise`` is this step's part of what was drawn, None in evaluation."""


class GatesFn(Protocol):
    """``gates(params, carry, x) -> gates``: the gates of one step."""

    def __call__(self, params: PyTree, carry: PyTree, x: PyTree, /) -> Any:
        """Compute the gates, by the code that ``step`` runs.

        Args:
            params, carry, x: as for ``step``.

        Returns:
            A NamedTuple of arrays (*B, H), one a gate.
        """


class NoiseFn(Protocol):
    """``noise(params, key, times, x) -> noise``: everything random of a run, drawn before its loop."""

    def __call__(self, params: PyTree, key: jax.Array, times: jax.Array, x: PyTree, /) -> PyTree:
        """Draw the noise of a run.

        Args:
            params: what ``init`` returned.
            key: a key, of shape ().
            times: (T,) integers, *absolute* time: a chunk draws what the whole run draws at its times.
            x: the input of one step as ``jax.ShapeDtypeStruct`` (*B, I).

        Returns:
            Any pytree; each leaf leads with T, or with 1 where one draw serves the whole sequence.
        """


class AffineFn(Protocol):
    """``affine(params, x) -> (a, b)``: one step of a linear recurrence, h_t = a_t * h_{t-1} + b_t."""

    def __call__(self, params: PyTree, x: PyTree, /) -> tuple[PyTree, PyTree]:
        """Compute the two from the input alone.

        Args:
            params: what ``init`` returned.
            x: (*B, I), or whatever ``x_ndim`` says.

        Returns:
            ``(a, b)``, each of the carry's structure: leaves of b (*B, …) have the shapes of the carry's; those of a
            too, or only the last axes of them where all sequences share a. The carry's dtypes hold both.
        """


class OutputFn(Protocol):
    """``output(params, carry, x) -> y``: what a linear recurrence puts out, from its new carry."""

    def __call__(self, params: PyTree, carry: PyTree, x: PyTree, /) -> PyTree:
        """Compute the output of a step.

        Args:
            params, x: as for ``affine``.
            carry: the new one, each leaf (*B, …).

        Returns:
            y (*B, O), or a pytree whose leaves lead with ``*B``.
        """


class ApplyFn(Protocol):
    """``apply(params, xs, carry=None, *, lengths, mask, resets, key, start) -> (carry, ys)``: a whole run."""

    def __call__(
        self,
        params: PyTree,
        xs: PyTree,
        carry: PyTree = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        key: jax.Array | None = None,
        start: ArrayLike = 0,
    ) -> tuple[PyTree, PyTree]:
        """Run over a sequence.

        Args:
            params: what ``init`` returned.
            xs: (T, *B, I), or a pytree of arrays that all lead with (T, *B).
            carry: where to start, each leaf (*B, …); None means ``initial_carry(params, batch_shape)``.
            lengths: (*B) integers, the valid steps of each sequence, in absolute time.
            mask: (T, *B) booleans, True where a step is valid.
            resets: (T, *B) booleans, True where a new episode begins.
            key: of the noise, shape (); None means evaluation.
            start: the absolute time of ``xs[0]``, ().

        Returns:
            ``(carry, ys)``: the carry after the last valid step of each sequence, and ys (T, *B, O) in input order, 0
            where a step is not valid.
        """


@known_by_spec
@with_affine
class Cell(NamedTuple):
    """A recurrence, as pure functions: what happens at one time step.

    Three functions make a cell; the other fields have defaults. :class:`InitFn`, :class:`InitialCarryFn`,
    :class:`StepFn`, :class:`GatesFn`, :class:`NoiseFn`, :class:`AffineFn` and :class:`OutputFn` state what each
    function takes and returns.

        init(key) -> params                            any pytree of arrays
        initial_carry(params, batch_shape=()) -> carry  any pytree; every leaf leads with ``*B``
        step(params, carry, x) -> (carry, y)            the new carry has the old one's shapes and dtypes

    ``functools.partial(cell.step, params)`` is the body of a ``jax.lax.scan``. ``jr.check_cell(cell, params, xs)`` says
    what a cell of your own breaks of all this.

    Fields:
        gates: ``gates(params, carry, x)`` -> a NamedTuple of named arrays, computed by the code of ``step``. Entries
            named as the carry's fields (h where the carry is one array) are the new state; wrappers that change the
            state need them.
        noise: ``noise(params, key, times, x)`` -> a pytree that ``step`` receives as its fourth argument, drawn
            once for the whole run. ``times`` (T,) are *absolute* time indices, ``x`` describes the input of one
            step (shape and dtype). Each leaf leads with T, or with 1 where one draw serves the whole sequence.
            ``jr.draw_each_step(draw, key, times)`` draws each step's by its time; noise that does not go by ``times``
            makes chunks another run than the whole, which ``jr.check_cell`` tells.
            A cell with ``noise`` takes ``step(params, carry, x, noise=None)``; None means evaluation.
        x_ndim: the number of feature axes of ``x``: 1 for vectors, 0 for integer tokens, 3 for images; where ``x`` is a
            pytree of different arrays, a pytree of such numbers.
        input_size, output_size: the last feature axis of ``x`` and ``y`` where known; ``stack`` and the error
            messages read them.
        affine: ``affine(params, x)`` -> (a, b) makes a linear recurrence, h_t = a_t * h_{t-1} + b_t leaf by leaf. It
            takes the place of ``step``, which is made from it (so is ``initial_carry``, zeros, where none is given and
            ``input_size`` is). Gates and outputs may depend on the carry, a and b on the input alone; no ``noise``.
        output: ``output(params, carry, x)`` -> y of a cell with ``affine``; None puts out the new carry.
            ``cell._replace(step=…)``, as wrappers do it, drops both: what a step of another's making computes need not
            be linear. ``cell._replace(affine=…)`` makes the step anew.
        spec: what ``jr.build`` rebuilds this cell from; None for a user's own cell, and as soon as a field is another
            than the factory made (``cell._replace(step=…)``).

    Cells with equal specs are equal, have one hash and are pickled as their spec: as static arguments of ``jax.jit``
    they are traced once, and other processes rebuild them. A function among the options has to be one that pickle
    finds. Cells without a spec are equal where they hold the same functions.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> def init(key):  # a leaky integrator: c_t = a * c_{t-1} + x_t
        ...     return {"a": jnp.asarray(0.9)}
        >>> def initial_carry(params, batch_shape=()):
        ...     return jnp.zeros((*batch_shape, 1))
        >>> def step(params, carry, x):
        ...     carry = params["a"] * carry + x
        ...     return carry, carry
        >>> layer = jr.scan(jr.Cell(init, initial_carry, step))
        >>> params = layer.init(jax.random.key(0))
        >>> carry, ys = layer.apply(params, jnp.ones((3, 2, 1)))
        >>> ys[:, 0, 0].round(2).tolist()
        [1.0, 1.899999976158142, 2.7100000381469727]

        It is linear, so two functions would do:

        >>> cell = jr.Cell(init, affine=lambda params, x: (params["a"], x), input_size=1)
        >>> carry, ys = jr.scan(cell).apply(params, jnp.ones((3, 2, 1)))
        >>> ys[:, 0, 0].round(2).tolist()
        [1.0, 1.899999976158142, 2.7100000381469727]
    """

    init: InitFn
    initial_carry: InitialCarryFn = None  # type: ignore[assignment]  # made from affine, or required
    step: Callable[..., tuple[PyTree, PyTree]] = None  # type: ignore[assignment]  # a StepFn, with noise a NoisyStepFn
    gates: GatesFn | None = None
    noise: NoiseFn | None = None
    x_ndim: Any = 1
    input_size: int | None = None
    output_size: int | None = None
    affine: AffineFn | None = None
    output: OutputFn | None = None
    spec: Spec | None = None


@known_by_spec
class Layer(NamedTuple):
    """A recurrence run over time, as pure functions. ``jr.scan`` makes one from a Cell.

        init(key) -> params
        initial_carry(params, batch_shape=()) -> carry
        apply(params, xs, carry=None, *, lengths=None, mask=None, resets=None, key=None, start=0) -> (carry, ys)

    :class:`ApplyFn` states what ``apply`` takes and returns, and ``jr.scan`` says what happens in it. The other fields
    are those of :class:`Cell`.
    """

    init: InitFn
    initial_carry: InitialCarryFn
    apply: ApplyFn
    x_ndim: Any = 1
    input_size: int | None = None
    output_size: int | None = None
    spec: Spec | None = None


def name_of(member: Cell | Layer) -> str:
    """The name that error messages use: ``lstm``, ``scan(lstm)`` …, or ``user cell`` where there is no spec."""
    if member.spec is None:
        return "user cell" if isinstance(member, Cell) else "user layer"
    if member.spec.kind == "scan":
        return f"scan({member.spec.children[0].kind})"
    return member.spec.kind


def expect_cell(
    who: str, cell: Any, *, if_layer: str = "give the Cell that it runs, and jr.chain in place of jr.stack"
) -> None:
    """Raise where something else than a Cell is given; ``if_layer`` is the fix for a Layer."""
    if isinstance(cell, Layer):
        raise TypeError(f"{who}: expected a Cell, got {name_of(cell)}, a Layer; {if_layer}.")
    if not isinstance(cell, Cell):
        raise TypeError(f"{who}: expected a Cell, got {type(cell).__name__}.")


def check_model(who: str, model: Any) -> None:
    """Raise where something else than a Cell or a Layer is given."""
    if not isinstance(model, Cell | Layer):
        raise TypeError(f"{who}: expected a Cell or a Layer, got {type(model).__name__}.")


def flatten(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], Any]:
    """``jax.tree.flatten``: the leaves, and the structure that puts them back."""
    return jax.tree.flatten(tree, is_leaf=is_leaf)


def is_float(a: Any) -> bool:
    """Whether something is real numbers, which have a derivative; integers and keys are not."""
    return jnp.issubdtype(jnp.result_type(a), jnp.floating)


def is_inexact(a: Any) -> bool:
    """Whether something is real or complex numbers; integers, booleans and keys are not."""
    return jnp.issubdtype(jnp.result_type(a), jnp.inexact)


def is_narrow(a: Any) -> bool:
    """Whether an array holds floats of less than 32 bits, in which long sums stall."""
    dtype = getattr(a, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


@checks_arguments
def draw_each_step(draw: Callable[[jax.Array], PyTree], key: jax.Array, times: jax.Array) -> PyTree:
    """The noise of each step, by absolute time: a chunk draws what the whole run draws there.

        noise_t = draw(fold_in(key, t))

    Args:
        draw: from a key to the noise of one step, a pytree of arrays.
        key: a key, of shape ().
        times: (T,) integers, absolute times, as :class:`NoiseFn` is given them.

    Returns:
        What ``draw`` returns, each leaf leading with T.

    Raises:
        TypeError: a draw that is no function, times that are no integers (T,).

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> def noise(params, key, times, x):
        ...     return jr.draw_each_step(lambda k: 0.1 * jax.random.normal(k, x.shape), key, times)
        >>> def step(params, h, x, noise=None):  # None: evaluation
        ...     h = 0.9 * h + x if noise is None else 0.9 * h + x + noise
        ...     return h, h
        >>> def initial_carry(params, batch_shape=()):
        ...     return jnp.zeros((*batch_shape, 3))
        >>> layer = jr.scan(jr.Cell(lambda key: (), initial_carry, step, noise=noise))
        >>> xs, key = jnp.ones((7, 2, 3)), jax.random.key(0)
        >>> carry, whole = layer.apply((), xs, key=key)
        >>> carry, first = layer.apply((), xs[:4], key=key)
        >>> carry, rest = layer.apply((), xs[4:], carry, key=key, start=4)
        >>> bool((jnp.concatenate([first, rest]) == whole).all())
        True
    """
    if not callable(draw):
        raise TypeError(f"draw_each_step: draw must be a function of a key, got {type(draw).__name__}.")
    times = jnp.asarray(times)
    if times.ndim != 1 or not jnp.issubdtype(times.dtype, jnp.integer):
        raise TypeError(
            f"draw_each_step: times must be integers of shape (T,), got {times.dtype} of shape {times.shape}; hand on "
            f"the times that noise(params, key, times, x) is given."
        )
    check_key("draw_each_step", key)
    return jax.vmap(lambda time: draw(jax.random.fold_in(key, time)))(times)


def select(flag: jax.Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """``where(flag, on_true, on_false)`` leaf by leaf, the flag (…,) covering each leaf's leading axes."""

    def leaf(a, b):
        wide = flag.reshape(flag.shape + (1,) * (jnp.ndim(a) - flag.ndim))
        return jnp.where(wide, a, b)

    return jax.tree.map(leaf, on_true, on_false)
