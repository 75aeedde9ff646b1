"""The constants by which plans choose: the user's file, when it is taken, and the command that writes it."""

import functools
import itertools
import json
import math
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as jr
from jaxrnn.commands import tune
from jaxrnn.commands.other_work import OtherWork
from jaxrnn.planning import constants as table
from jaxrnn.planning.tuning_file import FORMAT, conditions, file_text
from tests.commands import lines_of, run_command
from tests.programs import accumulators

T, B, I, H = 7, 2, 3, 5


pytestmark = pytest.mark.usefixtures("many_rows")


@pytest.fixture
def own(monkeypatch, tmp_path):
    """The user's own file, in a folder of the test; one device, and nothing else runs; nothing is read yet."""
    folders = types.SimpleNamespace(user_config_path=lambda name: tmp_path / "config" / name)
    monkeypatch.setitem(sys.modules, "platformdirs", folders)
    monkeypatch.delenv("JAXRNN_TUNING")  # conftest.py has switched it off
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(OtherWork, "cores", lambda self: 0.0)
    table._read_once.cache_clear()
    yield tmp_path / "config" / "jaxrnn" / "tuning.json"
    table._read_once.cache_clear()


@pytest.fixture
def run(capsys):
    return functools.partial(run_command, capsys)


def plant(path, **constants):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(file_text(constants), encoding="utf-8")


def explained(plan="auto"):
    layer = jr.scan(jr.lstm(I, H), plan=plan)
    params = jax.eval_shape(layer.init, jax.random.key(0))
    return jr.explain(layer, params, jax.ShapeDtypeStruct((T, B, I), jnp.float32)).scans[0]


# ---- the file ----------------------------------------------------------------------------------


def test_the_tests_read_no_file():
    assert (table.constants()[:2], table.constants_from()) == ((8, 2**20), None)


def test_a_file_changes_what_plans_choose(own):
    """The products share a cotangent; h @ W_hh has 2.5 weights for each number of it. W_xh has 60 weights, W_hh 100."""
    before = explained()
    assert (before.contracted, before.weights_on_the_left, before.constants) == ([], [], None)
    assert set(before.added_in_loop) == {"(2, 5) @ (5, 20)", "(2, 3) @ (3, 20)"}
    plant(own, contract_from=2.5, left_from=60)
    assert explained().contracted == [], "the file is read once in a process"
    table._read_once.cache_clear()
    after = explained()
    assert (set(after.contracted), after.added_in_loop) == ({"(2, 5) @ (5, 20)", "(2, 3) @ (3, 20)"}, [])
    assert after.weights_on_the_left == ["(2, 20)"]
    assert after.constants == str(own)
    assert str(after).splitlines()[-1] == f"  constants: {own}"
    assert "constants" not in str(before) and "constants" not in str(explained("plain"))


def test_a_constant_that_a_file_does_not_have_is_the_default(own):
    plant(own, left_from=60)
    assert table.constants()[:2] == (8, 60)


@pytest.mark.parametrize("value", ["off", "OFF", "0"])
def test_the_environment_switches_the_file_off(own, monkeypatch, value):
    plant(own, contract_from=1)
    monkeypatch.setenv("JAXRNN_TUNING", value)
    assert explained().contracted == [] and table.constants_from() is None


@pytest.mark.parametrize("value, by", [("other.json", 3), ("", 1)])
def test_the_environment_names_another_file(own, monkeypatch, tmp_path, value, by):
    plant(own, contract_from=1)
    plant(tmp_path / "other.json", contract_from=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXRNN_TUNING", value)
    assert table.constants().contract_from == by


@pytest.mark.parametrize("name, value", [("process_count", 2), ("default_backend", "gpu")])
def test_where_no_file_is_read(own, monkeypatch, name, value):
    """Processes of one job compile one program; constants are those of a CPU."""
    plant(own, contract_from=1)
    monkeypatch.setattr(jax, name, lambda: value)
    assert (table.constants(), table.constants_from()) == (table.DEFAULT, None)


def test_without_platformdirs_there_is_no_file(own, monkeypatch, run):
    plant(own, contract_from=1)
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    assert table.constants() == table.DEFAULT
    said = (
        "tune: jaxrnn.planning needs platformdirs, a dependency of jaxrnn: pip install platformdirs; or name a file by"
    )
    assert run("tune", "--path") == (1, "", [f"{said} JAXRNN_TUNING=PATH."])


def text(**changed):
    return json.dumps({**conditions(), "constants": {"contract_from": 1}, **changed})


@pytest.mark.parametrize(
    "held, reason",
    [
        (b"\xff{", "it is not sound JSON"),
        ("[" * 60_000, "it is not sound JSON"),
        ("[8]", "it holds no format and constants, as a tuning file does"),
        (" " * 70_000, "it has more than 65,536 bytes"),
        (lambda: text(format=FORMAT + 1), "it was written for format 2, here it is 1"),
        (lambda: text(format=True), "it was written for format True, here it is 1"),
        (lambda: text(jaxlib="0.9.9"), "it was written for jaxlib '0.9.9', here it is"),
        (lambda: text(cpu="Z80, 1 cores"), "it was written for cpu 'Z80, 1 cores', here it is"),
        (lambda: text(platform=None), "it was written for platform None, here it is 'cpu'"),
        (
            lambda: text(constants={"hoist": 1}),
            "it holds a constant 'hoist', which this version of jaxrnn does not have",
        ),
        *(
            (
                lambda value=value: text(constants={"contract_from": value}),
                f"its contract_from is {value!r}, which is no",
            )
            for value in (0, -1.0, True, None, "8", math.nan, math.inf)
        ),
    ],
)
def test_a_file_that_does_not_hold_is_ignored_with_one_warning(own, held, reason):
    held = held() if callable(held) else held
    own.parent.mkdir(parents=True)
    own.write_bytes(held if isinstance(held, bytes) else held.encode())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert table.constants() == table.constants() == table.DEFAULT and table.constants_from() is None
    (said,) = (str(warning.message) for warning in told)
    assert said.startswith(f"jaxrnn: the tuning file {str(own)!r} is ignored: {reason}")
    assert said.endswith(
        ". Plans choose by the defaults. Write it anew with python -m jaxrnn tune, remove it with python -m jaxrnn "
        "tune --remove, or set JAXRNN_TUNING=off."
    )


def test_a_file_that_the_environment_names_must_be_there(own, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXRNN_TUNING", str(tmp_path / "none.json"))
    with pytest.warns(UserWarning, match=r"none\.json' is ignored: No such file or directory"):
        assert table.constants() == table.DEFAULT


# ---- what is chosen ----------------------------------------------------------------------------


def planted(case, ratio, spread=0.0):
    """Times of 16 rounds: two programs whose times have this ratio in each, and spread alike."""
    first = [ratio * (1 + 2 * spread * (number / 15 - 0.5)) for number in range(16)]
    return first, [time / ratio for time in first]


@pytest.mark.parametrize(
    "verdicts, constant",
    [
        ("eeeee", 8),  # all within the noise: it stays
        ("llegg", 8),  # nothing contradicts the default
        ("leegg", 8),
        ("llggg", 4),
        ("ggggg", 1),
        ("leggg", 4),  # 2 or 4 by the measurements, 4 is the nearer one
        ("lllle", 16),
        ("lllll", 32),  # beyond all that was measured
        ("glegg", 4),  # one that gains below one that loses: from where none loses
        ("gglgl", 32),
    ],
)
def test_the_constant_that_no_measurement_contradicts(verdicts, constant):
    ratios = {"g": 0.9, "e": 1.0, "l": 1.1}
    found = []
    for at, verdict in zip((1, 2, 4, 8, 16), verdicts, strict=True):
        case = tune.Case("contract_from", at, "lstm", T, B, H)
        found.append(tune.Measured.of(case, *planted(case, ratios[verdict])))
        assert (found[-1].gains, found[-1].loses) == (verdict == "g", verdict == "l")
    assert tune.chosen(8, found) == constant
    assert tune.chosen(8, [*reversed(found), *found]) == constant


def test_what_is_made_of_times():
    case = tune.Case("contract_from", 2, "lstm", T, B, H)
    first, second = [float(n) for n in range(1, 17)], [2.0] * 16
    measured = tune.Measured.of(case, first, second)
    assert (measured.with_choice, measured.without, measured.ratio) == (8.5, 2.0, 4.25)
    assert (measured.low, measured.high) == (2.5, 6.0)  # the fifth on either side
    assert measured.spread == (12.25 - 4.75) / 8.5
    assert tune.Measured.of(case, [0.9, 1.1] * 8, [1.0] * 16).gains is False, "within the noise"


def test_the_interval_of_the_median_covers_it():
    """Of n rounds, heads and tails: the chance that the median lies outside is at most 5 % and a bit."""
    for n in range(tune.FEWEST, tune.ROUNDS + 1):
        case = tune.Case("contract_from", 2, "lstm", T, B, H)
        measured = tune.Measured.of(case, [float(k) for k in range(n)], [1.0] * n)
        below = int(measured.low)  # rounds left out on each side
        assert measured.high == n - 1 - below
        outside = 2 * sum(math.comb(n, k) for k in range(below + 1)) / 2**n
        assert outside <= 0.08, n


# ---- the command -------------------------------------------------------------------------------


def times_of(ratios, spread=0.0):
    """In place of ``tune.times``: no program is compiled."""

    def times(case):
        return planted(case, ratios.get((case.constant, case.at), 1.0), spread)

    return times


GAINS = {("contract_from", at): 0.5 for at in (4, 8, 16)} | {("contract_from", 1): 1.5}


def test_tune_writes_what_plans_then_choose_by(own, monkeypatch, run):
    monkeypatch.setattr(tune, "times", times_of(GAINS))
    status, said, errors = run("tune")
    assert (status, errors) == (0, [])
    assert len(lines_of(said, "  ")) == len(tune.CASES)
    assert (
        "          4  lstm (T, B, H) = (256, 32, 128)     500.00 / 1000.00 ms = 0.50" in said
        and said.count("gains") == 6
    )
    assert lines_of(said, "contract_from") == ["contract_from: 4, before 8 (the default is 8)"]
    assert lines_of(said, "left_from") == ["left_from: 1,048,576, as before"]
    assert said.splitlines()[-1] == f"written: {own}"
    assert json.loads(own.read_text()) == conditions() | {"constants": {"contract_from": 4, "left_from": 2**20}}
    assert "constants: " not in str(explained()), "this process has asked before"
    table._read_once.cache_clear()
    assert explained().constants == str(own) and table.constants()[:2] == (4, 2**20)

    monkeypatch.setattr(tune, "times", times_of({}))  # measured anew, from the default and not from the file
    assert lines_of(run("tune")[1], "contract_from") == ["contract_from: 8, before 4"]


def test_a_busy_machine_writes_nothing(own, monkeypatch, run):
    monkeypatch.setattr(tune, "times", times_of(GAINS, spread=0.21))
    status, _, (error,) = run("tune")
    assert status == 1 and not own.parent.exists()
    assert error == (
        "tune: this machine is too busy to measure: the times of lstm (T, B, H) = (64, 128, 128) spread by 21.0%, "
        "twice, where 20% is the most; nothing is written. Run it again when nothing else runs."
    )
    monkeypatch.setattr(tune, "times", times_of(GAINS, spread=0.19))
    assert run("tune")[0] == 0 and own.exists()


def test_steady_work_of_others_is_told(own, monkeypatch, run):
    """Beside it each time is like the next, and not like those of an idle machine."""
    monkeypatch.setattr(tune, "times", times_of(GAINS))
    monkeypatch.setattr(tune.os, "cpu_count", lambda: 4)
    for cores, status in ((0.81, 1), (0.79, 0), (None, 0)):
        monkeypatch.setattr(OtherWork, "cores", lambda self, cores=cores: cores)
        came, _, errors = run("tune")
        assert (came, own.exists()) == (status, not status)
        if status:
            assert "too busy to measure: other processes kept 0.8 of 4 cores busy; nothing is written." in errors[0]


def test_a_dry_run_writes_nothing(own, monkeypatch, run):
    monkeypatch.setattr(tune, "times", times_of(GAINS))
    status, said, errors = run("tune", "--dry-run")
    assert (status, errors, own.parent.exists()) == (0, [], False)
    assert lines_of(said, "contract_from") == ["contract_from: 4, before 8 (the default is 8)"]
    assert said.splitlines()[-1] == f"nothing is written; without --dry-run it would be {own}"


def test_remove_and_path(own, monkeypatch, run):
    assert run("tune", "--path") == (0, f"{own}\n", [])
    assert run("tune", "--remove") == (0, f"there is no file {own}\n", [])
    plant(own, contract_from=1)
    assert run("tune", "--remove") == (0, f"removed: {own}\n", [])
    assert not own.exists()
    monkeypatch.setenv("JAXRNN_TUNING", "off")
    assert run("tune", "--path") == (0, f"{own}\n", [])
    monkeypatch.setattr(tune, "times", times_of(GAINS))
    assert run("tune")[1].splitlines()[-1] == "it is not read while JAXRNN_TUNING=off" and own.exists()


@pytest.mark.parametrize("option", [[], ["--remove"]])
def test_what_is_no_tuning_file_is_left_alone(own, monkeypatch, tmp_path, run, option):
    """Should the variable name something else; the user's own place is the command's, whatever it holds."""
    monkeypatch.setattr(tune, "times", times_of(GAINS))
    other = tmp_path / "notes.json"
    other.write_text('{"a": 1}')
    own.parent.mkdir(parents=True)
    own.write_text("broken")
    assert run("tune", *option)[0] == 0 and own.exists() is not bool(option)
    monkeypatch.setenv("JAXRNN_TUNING", str(other))
    status, _, errors = run("tune", *option)
    fix = "remove it, or name another by JAXRNN_TUNING=PATH."
    reason = "it holds no format and constants, as a tuning file does"
    assert (status, errors) == (1, [f"tune: {str(other)!r} is no tuning file: {reason}; {fix}"])
    assert other.read_text() == '{"a": 1}'


@pytest.mark.parametrize("name, value", [("device_count", 2), ("default_backend", "gpu")])
def test_tune_wants_one_cpu_device(own, monkeypatch, run, name, value):
    monkeypatch.setattr(jax, name, lambda: value)
    status, _, (error,) = run("tune")
    assert status == 1 and not own.exists()
    assert error.startswith("tune: the constants are those of one CPU device, but JAX has ")
    assert error.endswith("; run it with JAX_PLATFORMS=cpu and without jax_num_cpu_devices.")


def test_what_is_compared():
    """A training step that adds up the gradients of weights in its loop beside one that does not; both products."""
    case = tune.Case("contract_from", 2, "elman", 3, 2, 4)
    (contracted, added), _ = tune.programs(case)
    held = [set().union(*accumulators(program.as_text())) for program in (contracted, added)]
    assert ["f32[9,4]" in shapes for shapes in held] == [False, True]  # of both products and the bias, as one
    (left, right), _ = tune.programs(case._replace(constant="left_from", B=3))
    assert ["f32[4,3]" in program.as_text() for program in (left, right)] == [True, False]


def test_the_two_take_turns(monkeypatch):
    """By a clock that goes on by a second at each look: as few rounds as there may be."""
    monkeypatch.setattr(tune.time, "perf_counter", map(float, itertools.count()).__next__)
    order = []
    first, second = tune._take_turns(lambda: order.append("a"), lambda: order.append("b"))
    assert "".join(order) == ("baab" * tune.FEWEST)[: 2 * tune.FEWEST]
    assert first == second == [1.0] * tune.FEWEST
