"""Is this machine fit to train on? Versions, devices, and compiled gradients against plain loops.

    python -m jaxrnn doctor
    python -m jaxrnn doctor --json

Compilers have faults: some releases of jaxlib silently give wrong gradients of a plain GRU. So the check runs
what training runs, a jitted gradient of ``jr.scan(cell)``, and compares it with a Python loop over the textbook
equations in NumPy, which shares neither code nor compiler with it. (A loop over ``cell.step`` would share both:
outside ``jit`` XLA still compiles each operation, and jaxlib 0.10.2's arctan is wrong there too,
jax-ml/jax#39352.)

The loop's gradient is computed by the complex step. Every entry of an input array is moved by 1e-30 along the
imaginary axis, all entries side by side in one run, and

    ∂L/∂a = Im L(a + 1e-30 i) / 1e-30

has neither truncation error nor cancellation: it is right to rounding, while finite differences lose half of
the digits. It takes milliseconds; gradients without ``jit`` would compile hundreds of small programs.

Reference:
    Squire & Trapp, "Using complex variables to estimate derivatives of real functions", SIAM Review 40, 1998.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from jaxrnn._base import Cell, Layer, PyTree
from jaxrnn.doctor import probes

# ---- versions ----------------------------------------------------------------------------------

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "safetensors", "flax", "optax")
FIX = "pip install --upgrade 'jax!=0.10.2,!=0.11.0'"

BAD_JAXLIB = {
    "0.10.2": "silently computes wrong values on the CPU (jax-ml/jax#39103), such as float64 gradients of a "
    "plain GRU, and can crash there (jax-ml/jax#39257)",
    "0.11.0": "can crash or hang on the CPU (jax-ml/jax#39257)",
}


def installed_versions() -> dict[str, str | None]:
    """The version of each package as installed, found without importing it; None where it is absent."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def known_problems(versions: Mapping[str, str | None]) -> list[str]:
    """What is known against these versions, one sentence each; none for versions without a known problem.

    Args:
        versions: names to versions, as :func:`installed_versions` gives them.

    Example:
        >>> from jaxrnn.doctor import known_problems
        >>> known_problems({"jax": "0.10.1", "jaxlib": "0.10.1"})
        []
        >>> known_problems({"jax": "0.11.0", "jaxlib": "0.11.0"})[0][:54]
        'jaxlib 0.11.0 can crash or hang on the CPU (jax-ml/jax'
    """
    problems = []
    jaxlib, jax_version = versions.get("jaxlib"), versions.get("jax")
    release = (jaxlib or "").partition("+")[0]  # what follows a + names a build of the same source
    fault = BAD_JAXLIB.get(release)
    if fault:
        problems.append(f"jaxlib {jaxlib} {fault}; fix: {FIX}")
    if jax_version and tuple(int(part) for part in jax_version.split(".")[:2]) < (0, 10):
        problems.append(f"jax {jax_version} is untested with jaxrnn, which needs 0.10 or newer; fix: {FIX}")
    return problems


# ---- the cases ---------------------------------------------------------------------------------


class Case(NamedTuple):
    """One cell on one shape."""

    cell: str  # a key of CELLS
    T: int
    B: int
    I: int
    H: int
    reverse: bool = False
    lengths: tuple[int, ...] | None = None
    plan: str = "auto"
    dtype: str = "float32"


class Result(NamedTuple):
    """How far a compiled run lies from the plain loop."""

    case: Case
    value: float  # the largest relative difference of outputs and final carry
    gradient: float  # that of the gradients by parameters, inputs and initial carry
    tolerance: float
    error: str = ""  # what was raised, where something was

    @property
    def ok(self) -> bool:
        """Both differences are within the tolerance, as NaN never is; an error leaves NaN."""
        return self.value <= self.tolerance and self.gradient <= self.tolerance


# Sizes that fill whole SIMD registers (4, 8 or 16 numbers) beside sizes that do not: there compilers split
# loops, and there they err. The first is the GRU whose float64 gradient jaxlib 0.10.2 gets wrong, under the
# plain plan alone: each plan makes a program of its own, so both are run.
SHAPES = (
    Case("gru", 9, 4, 3, 5, plan="plain"),
    Case("gru", 7, 3, 5, 9, lengths=(7, 0, 4)),
    Case("gru", 5, 1, 1, 1, reverse=True),
    Case("gru, reset after", 9, 4, 3, 5),
    Case("gru, reset after", 6, 3, 2, 7, reverse=True, lengths=(2, 6, 5), plan="plain"),
    Case("elman", 11, 8, 3, 7),
    Case("elman", 5, 3, 1, 33, reverse=True, plan="plain"),
    Case("elman, readout", 7, 2, 3, 5, lengths=(3, 7)),
    Case("lstm", 9, 4, 3, 5, plan="plain"),
    Case("lstm", 4, 3, 7, 17, reverse=True, lengths=(1, 4, 3)),
    Case("peephole_lstm", 8, 4, 5, 3),
    Case("peephole_lstm, full", 6, 5, 1, 7, reverse=True, plan="plain"),
)
CASES = tuple(case._replace(dtype=dtype) for case in SHAPES for dtype in ("float32", "float64"))
MISCOMPILED = SHAPES[0]._replace(dtype="float64")

# Relative to the largest entry of each array. Up to a few thousand roundings stand between the inputs and a
# gradient, in an order that XLA may choose. On CPUs that makes 2e-6 and 3e-15 at the most, on devices with
# approximate float32 functions somewhat more; miscompiled gradients were off by 0.09 to 0.7.
TOLERANCES = {"float32": 1e-4, "float64": 1e-11}


# ---- the plain loop ----------------------------------------------------------------------------
# The equations once more, in NumPy, for complex numbers. Every array has one more axis in front, N: the
# entries that are moved (1 where none is); biases and peephole vectors come as rows, (N, 1, H).


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def elman_equations(p, h, x):
    h = np.tanh(h @ p.W_hh + x @ p.W_xh + p.b)
    return h, h if p.W_hy is None else h @ p.W_hy + p.b_y


def gru_equations(p, h, x):
    U_r, U_z, U_n = np.split(p.W_hh, 3, axis=-1)
    a_r, a_z, a_n = np.split(x @ p.W_xh + p.b, 3, axis=-1)
    r, z = sigmoid(a_r + h @ U_r), sigmoid(a_z + h @ U_z)
    n = np.tanh(a_n + (r * h) @ U_n if p.b_hh is None else a_n + r * (h @ U_n + p.b_hh))
    h = (1 - z) * h + z * n
    return h, h


def lstm_equations(p, carry, x):
    h, c = carry
    i, f, g, o = np.split(h @ p.W_hh + x @ p.W_xh + p.b, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return jr.LSTMCarry(h, c), h


def peephole_equations(p, carry, x):
    def peep(c, U):
        return c * U if U.shape[-2] == 1 else c @ U

    h, c = carry
    i, f, g, o = np.split(h @ p.W_hh + x @ p.W_xh + p.b, 4, axis=-1)
    c = sigmoid(f + peep(c, p.U_f)) * c + sigmoid(i + peep(c, p.U_i)) * np.tanh(g)
    h = sigmoid(o + peep(c, p.U_o)) * np.tanh(c)
    return jr.LSTMCarry(h, c), h


# Each cell's factory, (I, H, param_dtype) -> Cell, and its equations, (params, carry, x) -> (carry, y).
CELLS: dict[str, tuple[Callable[..., Cell], Callable[..., Any]]] = {
    "elman": (jr.elman, elman_equations),
    "elman, readout": (functools.partial(jr.elman, output_size=3), elman_equations),
    "gru": (jr.gru, gru_equations),
    "gru, reset after": (functools.partial(jr.gru, reset="after"), gru_equations),
    "lstm": (jr.lstm, lstm_equations),
    "peephole_lstm": (jr.peephole_lstm, peephole_equations),
    "peephole_lstm, full": (functools.partial(jr.peephole_lstm, peephole="full"), peephole_equations),
}


def plain_loop(equations, case: Case, params: PyTree, xs, carry: PyTree) -> tuple[PyTree, list[Any]]:
    """``(carry, ys)`` of a Python loop over time; every array has the axis N in front."""
    ys: list[Any] = [None] * case.T
    for t in reversed(range(case.T)) if case.reverse else range(case.T):
        new, y = equations(params, carry, xs[:, t])
        if case.lengths is not None:
            on = (t < np.array(case.lengths))[:, None]
            new, y = jax.tree.map(lambda a, old, on=on: np.where(on, a, old), new, carry), np.where(on, y, 0)
        carry, ys[t] = new, y
    return carry, ys


def reference(case: Case, inputs: tuple[PyTree, Any, PyTree], weights: PyTree) -> tuple[PyTree, PyTree]:
    """``((carry, ys), gradient)`` in float64, whatever the dtype of the case.

    Args:
        inputs: (params, xs, carry), what the gradient is taken by.
        weights: like (carry, ys); the loss is the sum of their products with the outcome.
    """
    equations = CELLS[case.cell][1]
    leaves, treedef = jax.tree.flatten(inputs)
    # The axis N in front, and vectors as rows, so that they broadcast over the batch.
    still = [np.asarray(a, np.complex128)[(None, None) if np.ndim(a) == 1 else None] for a in leaves]

    def run(arrays):
        carry, ys = plain_loop(equations, case, *jax.tree.unflatten(treedef, arrays))
        return carry, np.stack(ys, axis=1)

    def loss(outcome):
        products = jax.tree.map(lambda a, w: (a * w).reshape(len(a), -1).sum(1), outcome, weights)
        return sum(jax.tree.leaves(products))

    gradients = []
    for index, a in enumerate(still):
        moved = a + 1e-30j * np.eye(a.size).reshape(a.size, *a.shape[1:])
        losses = loss(run([*still[:index], moved, *still[index + 1 :]]))
        gradients.append(losses.imag.reshape(np.shape(leaves[index])) / 1e-30)
    return jax.tree.map(lambda a: a[0].real, run(still)), jax.tree.unflatten(treedef, gradients)


# ---- the check ---------------------------------------------------------------------------------


def draw(case: Case, cell: Cell) -> tuple[tuple[PyTree, np.ndarray, PyTree], PyTree]:
    """``((params, xs, carry), weights of the loss)``, biases random too; by NumPy, which compiles nothing."""
    generator = np.random.default_rng(0)

    def normal(like, scale=1.0):
        return np.asarray(generator.normal(0, scale, like.shape), case.dtype)

    params = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(lambda p: cell.initial_carry(p, (case.B,)), params)
    xs = jax.ShapeDtypeStruct((case.T, case.B, case.I), case.dtype)
    ys = jax.ShapeDtypeStruct((case.T, case.B, cell.output_size or case.H), case.dtype)
    params = jax.tree.map(lambda a: normal(a, case.H**-0.5), params)
    return (params, normal(xs), jax.tree.map(normal, carry)), jax.tree.map(normal, (carry, ys))


def compiled(case: Case, layer: Layer, inputs, weights) -> tuple[PyTree, PyTree]:
    """``((carry, ys), gradient)`` of the layer, as one jitted program on the default device."""
    lengths = None if case.lengths is None else np.array(case.lengths, np.int32)

    def loss(inputs):
        params, xs, carry = inputs
        outcome = layer.apply(params, xs, carry, lengths=lengths)
        products = jax.tree.map(lambda a, w: jnp.sum(a * w), outcome, weights)
        return sum(jax.tree.leaves(products)), outcome

    return jax.jit(jax.grad(loss, has_aux=True))(inputs)[::-1]


def furthest(got: PyTree, expected: PyTree) -> float:
    """The largest difference of any entry, relative to the largest entry of its array; NaN where any is.

    Raises:
        ValueError: their structures or shapes differ.
    """
    of_got, of_expected = map(str, map(jax.tree.structure, (got, expected)))
    if of_got != of_expected:
        raise ValueError(f"expected {of_expected}, got {of_got}")
    return float(np.max(jax.tree.leaves(jax.tree.map(_apart, got, expected))))


def _apart(got: Any, expected: Any) -> float:
    a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"expected shape {b.shape}, got {a.shape}")
    distance, size = np.abs(a - b).max(), np.abs(b).max()
    return float(distance / size if size else 0.0 if distance == 0 else np.inf if distance > 0 else np.nan)


def check(case: Case, scan: Callable[..., Layer] = jr.scan) -> Result:
    """Compare one case's compiled run with its plain loop; what is raised becomes the result's error."""
    tolerance = TOLERANCES[case.dtype]
    try:
        # "highest": else GPUs and TPUs multiply float32 in TF32 or bfloat16, which is a setting and no fault.
        with jax.enable_x64(case.dtype == "float64"), jax.default_matmul_precision("highest"):
            cell = CELLS[case.cell][0](case.I, case.H, param_dtype=case.dtype)
            inputs, weights = draw(case, cell)
            outcome, gradient = compiled(case, scan(cell, reverse=case.reverse, plan=case.plan), inputs, weights)
            true_outcome, true_gradient = reference(case, inputs, weights)
            return Result(case, furthest(outcome, true_outcome), furthest(gradient, true_gradient), tolerance)
    except Exception as error:  # a compiler can fail in any way; the other cases still say something
        first_line = (str(error).splitlines() or [""])[0]
        return Result(case, np.nan, np.nan, tolerance, f"{type(error).__name__}: {first_line}")


def self_check(cases: Iterable[Case] = CASES, scan: Callable[..., Layer] = jr.scan) -> Iterator[Result]:
    """The cases' results, each as soon as it is there: if one crashes the process, those before are known.

    Args:
        cases: what to run.
        scan: what makes a Layer of a Cell, called as ``scan(cell, reverse=…, plan=…)``.

    Example:
        >>> from jaxrnn.doctor import CASES, self_check
        >>> [result.ok for result in self_check(CASES[:2])]
        [True, True]
    """
    return (check(case, scan) for case in cases)


# ---- the command -------------------------------------------------------------------------------


def add_command(commands: Any) -> None:
    """Add ``doctor`` to the subcommands of ``python -m jaxrnn``."""
    parser = commands.add_parser(
        "doctor",
        help="check that this machine computes right gradients",
        description="Print versions and devices, then compare jitted gradients of scanned cells with plain "
        "NumPy loops: a dozen odd shapes in float32 and float64, on the default device, in under a minute.",
        epilog="The exit status is 1 where anything is off: a jax or jaxlib with a known problem, no device, "
        "a wrong number, a check that fails. JAX_PLATFORMS=cpu checks the CPU of a machine with a GPU.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead, for a bug report")
    parser.set_defaults(run=lambda arguments: main(as_json=arguments.json))


def main(cases: Sequence[Case] = CASES, scan: Callable[..., Layer] = jr.scan, *, as_json: bool = False) -> int:
    """Print the whole report.

    Args:
        cases, scan: as for :func:`self_check`.
        as_json: one JSON object in place of lines: versions, devices, problems, checks, probes, ok. What is no number
            is null there.

    Returns:
        The exit status: 0 where all is well, 1 where anything is off.
    """
    say = functools.partial(print, flush=True) if not as_json else lambda *words: None  # what follows may crash
    start = time.perf_counter()
    versions = installed_versions()
    report: dict[str, Any] = {"jaxrnn": jr.__version__, "python": platform.python_version(), **versions}
    report = {"versions": report, "platform": platform.platform(), "problems": known_problems(versions)}
    for name, version in {**report["versions"], "platform": report["platform"]}.items():
        say(f"{name:<9} {version or 'not installed'}")
    for problem in report["problems"]:
        say(f"PROBLEM   {problem}")
    results: list[Result] = []
    found: list[probes.Probe] = []
    try:
        devices = jax.devices()
    except RuntimeError as error:
        devices = []
        report["problems"].append(f"JAX finds no device: {error}")
        say(f"PROBLEM   {report['problems'][-1]}")
    report["devices"] = [f"{d.platform}:{d.id} ({d.device_kind})" for d in devices]
    if devices:
        say("devices   " + ", ".join(report["devices"]))
        say(f"\nJitted runs against plain loops on {devices[0].platform}, largest relative differences:\n")
        say(ROW.format("cell", "T,B,I,H", "dtype", "plan", "direction", "value", "gradient", "allowed", ""))
        for result in self_check(cases, scan):
            say(as_row(result))
            results.append(result)
        found = known_faults(results, versions, devices[0].platform)
        say("\nKnown faults of compilers:\n")
        for line in probes.lines(found):
            say(line)
        failed = sum(not result.ok for result in results)
        say(f"\n{len(cases) - failed} of {len(cases)} checks ok, in {time.perf_counter() - start:.0f} s.")
        if failed:
            say("Do not trust what is computed here. Try another release of jaxlib; report what remains.")
    ok = not report["problems"] and all(result.ok for result in results)
    if as_json:
        checks = [result._asdict() | {"case": result.case._asdict(), "ok": result.ok} for result in results]
        report |= {"checks": checks, "probes": [probe._asdict() for probe in found], "ok": ok}
        print(json.dumps(_without_nan(report), indent=2, ensure_ascii=False))
    return int(not ok)


def known_faults(results: Iterable[Result], versions: Mapping[str, str | None], platform: str) -> list[probes.Probe]:
    """The probes of the faults that are known; those of other programs make nothing wrong here."""
    of_gru = [result for result in results if result.case == MISCOMPILED]
    found = [probes.probe_wrong_values(result.gradient, result.tolerance, result.error) for result in of_gru]
    of_release = [probe(versions.get("jaxlib")) for probe in (probes.probe_crashes, probes.probe_hangs)]
    return [*found, *of_release, probes.probe_updates_in_place(), probes.probe_quadratic_scans(platform)]


def _without_nan(report: Any) -> Any:
    """JSON has no numbers for NaN and infinity."""
    if isinstance(report, Mapping):
        return {name: _without_nan(part) for name, part in report.items()}
    if isinstance(report, list | tuple):
        return [_without_nan(part) for part in report]
    return None if isinstance(report, float) and not np.isfinite(report) else report


ROW = "{:<20} {:<10} {:<8} {:<6} {:<17} {:>8} {:>8} {:>7}  {}"


def as_row(result: Result) -> str:
    """A result as a line of the report."""
    case = result.case
    direction = ("reversed" if case.reverse else "forward") + ", lengths" * (case.lengths is not None)
    status = "ok" if result.ok else f"failed: {result.error}" if result.error else "WRONG"
    return ROW.format(
        case.cell,
        ",".join(map(str, (case.T, case.B, case.I, case.H))),
        case.dtype,
        case.plan,
        direction,
        f"{result.value:.1e}",
        f"{result.gradient:.1e}",
        f"{result.tolerance:.0e}",
        status,
    )
