"""The doctor's probes of known faults: verdicts from given numbers, and the report for a bug's thread."""

import json

import jax
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn import doctor
from jaxrnn.doctor import probes


@pytest.mark.parametrize(
    ("difference", "verdict"), [(1e-15, "absent"), (1e-11, "absent"), (1.1e-11, "present"), (np.nan, "present")]
)
def test_wrong_values(difference, verdict):
    probe = probes.probe_wrong_values(difference, 1e-11)
    fix = "pip install --upgrade jax 'jaxlib!=0.10.2'" if verdict == "present" else ""
    assert (probe.issue, probe.verdict, probe.fix) == ("jax-ml/jax#39103", verdict, fix)


def test_what_fails_for_another_reason_is_not_measured():
    def fails(steps):
        raise RuntimeError("INTERNAL: the compiler gave up\nand more of it")

    found = [
        probes.probe_wrong_values(np.nan, 1e-11, "ValueError: no"),
        probes.probe_quadratic_scans("cpu", fails),
        probes.probe_updates_in_place(fails),
    ]
    assert [(probe.verdict, probe.fix) for probe in found] == 3 * [("not measured", "")]
    gave_up = "RuntimeError: INTERNAL: the compiler gave up"
    assert [probe.because for probe in found] == ["ValueError: no", gave_up, gave_up]


@pytest.mark.parametrize(
    ("moved", "verdict", "because"), [([1, 1, 2, 3], "absent", "1 1 2 3"), ([1, 1, 1, 1], "present", "1 1 1 1")]
)
def test_updates_in_place(moved, verdict, because):
    probe = probes.probe_updates_in_place(lambda a: np.array(moved, a.dtype).reshape(1, 4, 1))
    assert (probe.issue, probe.verdict) == ("openxla/xla#49176", verdict)
    assert probe.because.endswith(f" is {because}")
    assert ("--xla_disable_hlo_passes=algsimp" in probe.fix) == (verdict == "present")


def test_the_update_is_run():
    """What is right is what JAX does operation by operation; the compiler may have either."""
    with jax.disable_jit():
        assert probes.probe_updates_in_place().verdict == "absent"
    assert probes.probe_updates_in_place().verdict in ("absent", "present")


@pytest.mark.parametrize(
    ("jaxlib", "verdict"),
    [
        ("0.10.1", "not run"),
        ("0.10.2", "present"),
        ("0.11.0+cuda13", "present"),
        ("0.12.0", "not run"),
        (None, "not run"),
    ],
)
def test_crashes_are_told_by_the_release_alone(jaxlib, verdict, monkeypatch):
    monkeypatch.setattr(jax, "jit", None)  # nothing is run
    probe = probes.probe_crashes(jaxlib)
    assert (probe.issue, probe.verdict, bool(probe.fix)) == ("jax-ml/jax#39257", verdict, verdict == "present")


@pytest.mark.parametrize(
    ("jaxlib", "verdict"),
    [("0.10.1", "present"), ("0.11.2+cuda13", "present"), ("0.12.0.1", "not run"), (None, "not measured")],
)
def test_hangs_are_told_by_the_release_alone(jaxlib, verdict, monkeypatch):
    monkeypatch.setattr(jax, "jit", None)  # nothing is run
    probe = probes.probe_hangs(jaxlib)
    assert (probe.issue, probe.verdict) == ("unnumbered", verdict)
    assert ("PJRT_NPROC" in probe.fix) is (verdict == "present")


@pytest.mark.parametrize(("ratio", "verdict"), [(3.5, "absent"), (7.9, "absent"), (8.0, "present"), (16.0, "present")])
def test_scans_that_grow_with_the_square_of_their_length(ratio, verdict):
    asked = []

    def seconds(steps):
        asked.append(steps)
        return 0.001 if len(asked) == 1 else 0.001 * ratio

    probe = probes.probe_quadratic_scans("cpu", seconds, steps=100)
    assert asked == [100, 400]
    assert probe.verdict == verdict and probe.measured["ratio"] == pytest.approx(ratio)
    flag = "XLA_FLAGS=--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=0"
    fix = f"pip install --upgrade jax 'jaxlib!=0.11.1'; until then {flag}"
    assert probe.fix == (fix if verdict == "present" else "")


def test_the_scan_is_measured():
    measured = probes.probe_quadratic_scans("cpu", steps=10).measured
    assert measured["steps"] == 10 and 0 < measured["seconds"] < 10 and 0 < measured["longer_seconds"] < 10


def test_elsewhere_the_scan_is_not_run():
    probe = probes.probe_quadratic_scans("cuda", seconds=None)
    assert (probe.verdict, probe.measured) == ("not run", {}) and "this is cuda" in probe.because


def test_lines_say_what_to_do_under_what_is_present():
    found = [probes.probe_crashes("0.11.0"), probes.probe_crashes("0.12.0")]
    first, fix, second = probes.lines(found)
    assert first.startswith("jax-ml/jax#39257  present  ") and second.startswith("jax-ml/jax#39257  not run  ")
    pip, _, flag = fix.strip().partition("; until then ")
    assert pip == "fix: pip install --upgrade jax 'jaxlib!=0.10.2,!=0.11.0'"
    assert flag == "XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= (with nothing after the =)"


@pytest.fixture
def quick(monkeypatch):
    """Scans of a few steps, and versions without a known problem."""
    monkeypatch.setattr(probes, "_seconds_of_scan", lambda steps: 1e-8 * steps**2)
    monkeypatch.setattr(doctor, "installed_versions", lambda: {"jax": "0.12.0", "jaxlib": "0.12.0", "flax": None})


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("sound", [True, False])
def test_json(capsys, sound):
    def scan(cell, **options):
        own = jr.scan(cell, **options)
        return (
            own
            if sound
            else own._replace(apply=lambda *args, **more: jax.tree.map(lambda a: a * np.nan, own.apply(*args, **more)))
        )

    case = doctor.MISCOMPILED
    assert doctor.main([case], scan, as_json=True) == int(not sound)
    report = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report.keys() == {"versions", "platform", "devices", "problems", "checks", "probes", "ok"}
    assert report["ok"] is sound and report["problems"] == []
    assert report["versions"]["jaxlib"] == "0.12.0" and report["versions"]["flax"] is None
    (check,) = report["checks"]
    assert check["case"] == case._asdict() and check["ok"] is sound
    assert (check["gradient"] is None) == (not sound)
    verdicts = {probe["issue"].partition("#")[2]: probe["verdict"] for probe in report["probes"]}
    # A scan that is slow is told, and so is what JAX gets wrong elsewhere; nothing is wrong with what runs here.
    assert verdicts.pop("49176") in ("absent", "present")
    assert verdicts.pop("") == "not run"  # devices that hang: jaxlib is said to be 0.12.0
    assert verdicts == {"39103": "absent" if sound else "present", "39257": "not run", "40101": "present"}
