"""`python -m jaxrnn doctor`: right on this machine, and able to say that something is wrong."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn import __main__, doctor
from tests.commands import lines_of

# One case of each cell, shapes as small as the equations allow to differ: what is tested is the doctor.
ONE_OF_EACH = (
    doctor.Case("elman, readout", 3, 2, 3, 2, lengths=(2, 3), dtype="float64"),
    doctor.Case("gru", 3, 2, 2, 3, dtype="float64"),
    doctor.Case("gru, reset after", 3, 2, 2, 3, reverse=True, lengths=(1, 3), plan="plain", dtype="float64"),
    doctor.Case("lstm", 3, 2, 2, 3, reverse=True, dtype="float64"),
    doctor.Case("peephole_lstm", 3, 2, 2, 3, dtype="float64"),
    doctor.Case("peephole_lstm, full", 3, 2, 2, 3, dtype="float32"),
)
GRU = doctor.Case("gru", 3, 2, 2, 3)


@pytest.fixture
def sound_versions(monkeypatch):
    """The report must not depend on which jaxlib these tests happen to run with."""
    versions = {"jax": "0.12.0", "jaxlib": "0.12.0", "numpy": "2.4.0", "flax": None, "optax": "0.2.6"}
    monkeypatch.setattr(doctor, "installed_versions", lambda: versions)


def with_wrong_gradient(factor):
    """A ``jr.scan`` with right values, whose cotangents are multiplied by ``factor`` from step to step."""

    @jax.custom_vjp
    def wrong(a):
        return a

    wrong.defvjp(lambda a: (a, None), lambda _, d: (factor * d,))

    def scan(cell, **options):
        def step(params, carry, x):
            return cell.step(params, jax.tree.map(wrong, carry), x)

        return jr.scan(cell._replace(step=step), **options)

    return scan


@pytest.mark.usefixtures("sound_versions")
def test_a_sound_machine_gives_a_full_report_and_exit_status_0(capsys):
    assert doctor.main(ONE_OF_EACH) == 0
    report = capsys.readouterr().out
    assert lines_of(report, "jaxlib ") == ["jaxlib    0.12.0"]
    assert lines_of(report, "flax") == ["flax      not installed"]
    assert lines_of(report, "python") == ["python    " + sys.version.split()[0]]
    device = jax.devices()[0]
    assert f"{device.platform}:{device.id} ({device.device_kind})" in lines_of(report, "devices")[0]
    assert "PROBLEM" not in report and "WRONG" not in report
    table = [line for line in report.splitlines() if line.endswith("  ok")]
    assert [line.split("  ")[0] for line in table] == [case.cell for case in ONE_OF_EACH]
    assert table[2].split()[3:8] == ["3,2,2,3", "float64", "plain", "reversed,", "lengths"]
    assert "6 of 6 checks ok" in report
    told = [line.split()[0] for line in report.splitlines() if line.startswith(("jax-ml/", "openxla/", "unnumbered"))]
    # The GRU of #39103 is none of these cases.
    assert told == ["jax-ml/jax#39257", "unnumbered", "openxla/xla#49176", "jax-ml/jax#40101"]


def test_the_cases_cover_what_they_promise():
    assert len(doctor.SHAPES) == 12
    assert {case.cell for case in doctor.CASES} == set(doctor.CELLS)
    assert {(case.reverse, case.lengths is None, case.dtype) for case in doctor.CASES} == {
        (reverse, whole, dtype)
        for reverse in (False, True)
        for whole in (False, True)
        for dtype in ("float32", "float64")
    }
    # The GRU that jaxlib 0.10.2 gets wrong under lax.scan.
    assert doctor.Case("gru", T=9, B=4, I=3, H=5, plan="plain", dtype="float64") in doctor.CASES
    assert {case.plan for case in doctor.CASES} == {"auto", "plain"}


def test_the_reference_agrees_with_central_differences():
    """Complex steps against real differences of the same loop, over each kind of input at once."""
    case = doctor.Case("peephole_lstm, full", 3, 2, 2, 3, lengths=(3, 2), dtype="float64")
    with jax.enable_x64(True):
        inputs, weights = doctor.draw(case, jr.peephole_lstm(2, 3, peephole="full", param_dtype="float64"))
    direction = jax.tree.map(np.cos, inputs)  # no entry of it is 0

    def loss(epsilon):
        moved = jax.tree.map(lambda a, d: a + epsilon * d, inputs, direction)
        outcome, _ = doctor.reference(case, moved, weights)
        return sum(jax.tree.leaves(jax.tree.map(lambda a, w: (a * w).sum(), outcome, weights)))

    _, gradient = doctor.reference(case, inputs, weights)
    along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
    # ε² of truncation and 1e-16 / ε of rounding are both near 1e-11 for ε = 1e-5.
    np.testing.assert_allclose((loss(1e-5) - loss(-1e-5)) / 2e-5, along, rtol=1e-8)


@pytest.mark.usefixtures("sound_versions")
def test_a_wrong_gradient_is_found_and_gives_exit_status_1(capsys):
    """1 % in the cotangent of the carry, which leaves the values as they are."""
    assert doctor.main([GRU], scan=with_wrong_gradient(1.01)) == 1
    report = capsys.readouterr().out
    (row,) = lines_of(report, "gru")
    assert row.endswith("WRONG")
    assert "0 of 1 checks ok" in report and "Do not trust what is computed here" in report

    wrong, right = (next(doctor.self_check([GRU], with_wrong_gradient(factor))) for factor in (1.01, 1.0))
    assert right.ok and not wrong.ok and not wrong.error
    assert wrong.value < wrong.tolerance < 1e-3 < wrong.gradient < 0.1


def test_a_wrong_value_is_found():
    """The step adds 1e-2 to its output, whose gradient is 0: the gradients stay right."""

    def scan(cell, **options):
        def step(params, carry, x):
            carry, y = cell.step(params, carry, x)
            return carry, y + 0.01

        return jr.scan(cell._replace(step=step), **options)

    (result,) = doctor.self_check([GRU], scan)
    assert not result.ok and result.gradient < result.tolerance
    assert 0.001 < result.value < 0.1  # relative to the largest output, which is near 1


def test_nan_is_wrong():
    def scan(cell, **options):
        return jr.scan(cell._replace(step=lambda *inputs: (cell.step(*inputs)[0], jnp.nan * inputs[1])), **options)

    (result,) = doctor.self_check([GRU], scan)
    assert np.isnan(result.value) and not result.ok


@pytest.mark.usefixtures("sound_versions")
def test_a_crash_is_a_failed_row_and_the_others_still_run(capsys):
    def scan(cell, **options):
        if cell.spec.kind == "lstm":
            raise RuntimeError("INTERNAL: the compiler gave up\nand more of it")
        return jr.scan(cell, **options)

    assert doctor.main([GRU._replace(cell="lstm"), GRU], scan) == 1
    report = capsys.readouterr().out
    assert lines_of(report, "lstm")[0].endswith("failed: RuntimeError: INTERNAL: the compiler gave up")
    assert lines_of(report, "gru")[0].endswith("  ok")
    assert "1 of 2 checks ok" in report


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"jax": "0.10.2", "jaxlib": "0.10.2"}, ["jaxlib 0.10.2", "wrong values", "jax-ml/jax#39103"]),
        ({"jax": "0.10.2", "jaxlib": "0.10.2+cuda13"}, ["jaxlib 0.10.2+cuda13", "jax-ml/jax#39103"]),
        ({"jax": "0.11.0", "jaxlib": "0.11.0"}, ["jaxlib 0.11.0", "crash", "jax-ml/jax#39257"]),
        ({"jax": "0.9.2", "jaxlib": "0.9.2"}, ["jax 0.9.2", "untested", "0.10 or newer"]),
    ],
)
def test_known_problems_are_named_with_issue_and_fix(versions, expected):
    (problem,) = doctor.known_problems(versions)
    for part in [*expected, "pip install", "'jax!=0.10.2,!=0.11.0'"]:
        assert part in problem


@pytest.mark.parametrize("version", ["0.10.0", "0.10.1", "0.11.1", "0.12.0", "0.12.0.1", "0.20.0", "1.0.0"])
def test_sound_versions_have_no_known_problem(version):
    assert doctor.known_problems({"jax": version, "jaxlib": version}) == []


def test_a_known_bad_jaxlib_is_off_even_where_every_check_passes(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "installed_versions", lambda: {"jax": "0.11.0", "jaxlib": "0.11.0"})
    assert doctor.main([]) == 1
    (line,) = lines_of(capsys.readouterr().out, "PROBLEM")
    assert "jax-ml/jax#39257" in line


@pytest.mark.usefixtures("sound_versions")
def test_no_device_is_said_without_a_traceback(capsys, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", devices)
    assert doctor.main([GRU]) == 1
    assert lines_of(capsys.readouterr().out, "PROBLEM") == [
        "PROBLEM   JAX finds no device: Unable to initialize backend 'cuda'"
    ]


def test_installed_versions_are_those_of_the_packages():
    versions = doctor.installed_versions()
    assert (versions["jax"], versions["numpy"]) == (jax.__version__, np.__version__)


def test_an_absent_package_has_no_version(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    assert doctor.installed_versions() == {"numpy": np.__version__, "no-such-package": None}


def test_no_global_state_is_left_changed():
    before = (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision)
    (result,) = doctor.self_check([GRU._replace(dtype="float64")])
    assert result.ok and result.gradient < 1e-11  # so it did run in float64
    assert (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision) == before


@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_the_command_hands_on_the_exit_status(monkeypatch, status, arguments):
    monkeypatch.setattr(doctor, "main", lambda *, as_json: status if as_json == bool(arguments) else None)
    assert __main__.main(["doctor", *arguments]) == status


def test_the_module_runs_and_its_help_explains_itself():
    root = pathlib.Path(__file__).parents[1]

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "jaxrnn", *arguments],
            cwd=root,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )

    overview, without = run("--help"), run()
    assert overview.returncode == 0
    assert "doctor" in overview.stdout and "check that this machine computes right gradients" in overview.stdout
    assert without.returncode == 2 and "the following arguments are required: <command>" in without.stderr


def test_the_help_of_doctor_says_what_the_exit_status_means(capsys):
    with pytest.raises(SystemExit) as exit_info:
        __main__.main(["doctor", "--help"])
    assert exit_info.value.code == 0
    assert "exit status is 1" in " ".join(capsys.readouterr().out.split())
