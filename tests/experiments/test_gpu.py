"""The run that waits for a GPU, on the CPU: without one, with one made up, its time limit, tolerances and page."""

import re
import sys

import jax
import numpy as np
import pytest

import jaxrnn as jr
from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import ours
from experiments.benchmarks.measuring import measure
from experiments.benchmarks.problems import CHECKS, OutOfTime, Problem
from experiments.benchmarks.programs import QUANTITIES, Program, compiled
from experiments.benchmarks.suites import Entry, Group, Row
from experiments.benchmarks.timing import Budget
from experiments.gpu import __main__ as command
from experiments.gpu import contract, lowering, report, speed
from experiments.gpu.contract import Outcome
from experiments.gpu.deadline import Deadline, minding
from experiments.markdown import parts_of
from jaxrnn import doctor
from tests import evaluating
from tests.cases import CASES
from tests.documents import ROOT

SHAPE = (4, 6, 3, 8)
TINY = speed.Settings(shapes=(SHAPE,), budget=Budget(0.001, 1, 1, turn=0.001))
LSTM = next(case for case in CASES if case.name == "lstm-forward")
PAGE = "# GPU\n\n<!-- gpu:begin -->\nnot yet\n<!-- gpu:end -->\n"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


# ---------------------------------------------------------------- without a GPU


def test_without_a_gpu_everything_is_lowered_and_counted(monkeypatch, capsys):
    monkeypatch.setattr(contract, "CASES", (LSTM,))
    monkeypatch.setattr(speed, "Settings", lambda: TINY)
    page = ROOT / "docs/results/gpu.md"
    before = page.read_text(encoding="utf-8")
    assert command.main(["--write", str(page)]) == 0
    out = capsys.readouterr().out
    # the case without flags and with all, in two precisions; two cells, two dtypes, two quantities, two plans
    assert "sees no GPU, only cpu" in out and f"{4 + 16} of {4 + 16} programs lowered for CUDA" in out
    assert page.read_text(encoding="utf-8") == before


def test_what_does_not_lower_is_named_and_fails(monkeypatch, capsys):
    def broken(x):
        raise ValueError("no such thing\nmore")

    monkeypatch.setattr(lowering, "of_benchmark", lambda _: [lowering.Lowerable("a run", broken, (np.ones(2),))])
    assert command.without_gpu(TINY, cases=()) == 1
    out = capsys.readouterr().out
    assert "not lowered: a run: ValueError: no such thing\n" in out and "0 of 1 programs" in out


def test_the_programs_are_those_of_a_gpu():
    """On a CPU "auto" leaves x @ W in the loop, on a GPU it does not: the lowered text has to be the latter's."""
    problem = Problem("lstm", *SHAPE)

    def text(**options):
        traced = QUANTITIES["forward"](problem, ours.model(**options)(problem))
        (program,) = lowering.lowered([lowering.Lowerable("", traced.function, traced.args)])
        assert not program.error
        return re.sub(r"^#loc.*$|loc\(.*\)", "", program.text, flags=re.MULTILINE)  # which lines of Python it is from

    auto = text()
    assert auto == text(plan=jr.Plan(hoist=True, contract=True)) != text(plan=jr.Plan(hoist=False, contract=True))
    assert jax.default_backend() == "cpu"


def test_what_is_missing_is_named_with_the_fix(monkeypatch, capsys):
    monkeypatch.setitem(command.NEEDED, "no_such_module", "no-such-package")
    assert command.main([]) == 1
    said = capsys.readouterr().err
    assert (
        sys.executable in said
        and "got no no_such_module; " in said
        and "pip install 'no-such-package', or name another: make gpu PYTHON=…" in said
    )


def test_wrong_words_and_pages_are_refused_first(tmp_path, capsys):
    assert command.main(["--contestants", "jaxrnn,flax"]) == 2
    assert "--contestants: 'flax' is none of jaxrnn, jaxrnn plain, torch, cudnn" in capsys.readouterr().err
    (page := tmp_path / "page.md").write_text("nothing")
    assert command.main(["--write", str(page)]) == 2
    assert "expected the lines <!-- gpu:begin -->" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_is_a_number_above_zero(text, capsys):
    for module, option in ((command, "--minutes"), (benchmarks, "--seconds")):
        with pytest.raises(SystemExit, match=r"^2$"):
            module.parser().parse_args([f"{option}={text}"])
        said = capsys.readouterr().err
        assert f"argument {option}: expected a number of {option[2:]} above 0, got {text!r}\n" in said
    assert command.parser().parse_args(["--minutes", "0.5"]).minutes == 0.5


# ---------------------------------------------------------------- with one, which is the CPU


def test_the_whole_run(monkeypatch, capsys, tmp_path):
    """Doctor, contract, benchmark, page: what a GPU will run, on the CPU; torch as if it were not installed."""
    monkeypatch.setattr(doctor, "main", lambda: print("as the doctor says") or 0)
    settings = TINY._replace(cells=("lstm",), contestants=("jaxrnn", "cudnn"))
    (page := tmp_path / "page.md").write_text(PAGE)
    assert command.with_gpu(settings, 540.0, tmp_path, page, cases=[LSTM]) == 0
    run = tmp_path / "gpu-001"
    text = page.read_text()
    assert (run / "table.md").read_text() in text and "not yet" not in text
    assert "The doctor: nothing is wrong." in text
    assert "| float32 (TF32 off) | 5 of 5 | 0 |" in text and "| JAX's default (TF32 on) | 5 of 5 | 0 |" in text
    assert "| lstm 4,6,3,8 | **" in text and "| bfloat16 lstm 4,6,3,8 | **" in text
    assert "- not offered: off a GPU: cudnn (lstm 4,6,3,8 train; lstm 4,6,3,8 forward)" in text
    assert len((run / "rows.jsonl").read_text().splitlines()) == 6  # jaxrnn in two dtypes, cudnn in one; two quantities
    assert "as the doctor says" in capsys.readouterr().out


def test_a_doctor_or_case_that_fails_is_the_exit_status(monkeypatch, tmp_path, capsys):
    settings = TINY._replace(shapes=())
    monkeypatch.setattr(doctor, "main", lambda: 1)
    assert command.with_gpu(settings, 540.0, tmp_path, cases=()) == 1
    assert "The doctor: **something is wrong**" in (tmp_path / "gpu-001/table.md").read_text()
    monkeypatch.setattr(doctor, "main", lambda: 0)
    monkeypatch.setattr(contract, "compared", lambda *_: [[Outcome("a", "plain", "highest", 0.5, 1e-6)]])
    assert command.with_gpu(settings, 540.0, tmp_path, cases=()) == 1
    table = (tmp_path / "gpu-002/table.md").read_text()
    assert "**a, plain, products highest**: value 5.0e-01, gradient 1.0e-06; allowed 1.0e-04." in table


def test_without_the_cpu_beside_the_gpu_nothing_is_run(monkeypatch, tmp_path, capsys):
    def cpu():
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(contract, "cpu", cpu)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert command.with_gpu(TINY, 540.0, tmp_path) == 1
    assert "got JAX_PLATFORMS=cuda; unset it." in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("quantity", ["forward", "train"])
def test_bfloat16_is_what_is_computed(quantity):
    """Inputs, weights, outputs and gradients are bfloat16, and near those in float32: 8 bits, six steps."""
    problem = Problem("lstm", *SHAPE)
    low, high = (
        compiled(QUANTITIES[quantity](p, ours.model()(p)), 1, {}).call()
        for p in (problem._replace(dtype="bfloat16"), problem)
    )
    CHECKS[quantity](problem, low)
    assert {a.dtype for a in jax.tree.leaves(low)} == {jax.numpy.dtype("bfloat16")}
    assert 1e-4 < doctor.furthest(low, jax.tree.map(np.asarray, high)) < 0.05


# ---------------------------------------------------------------- the time limit


def entry(name, clock, seconds, began):
    def build(placed):
        began.append(name)

        def call():
            clock.now += seconds

        return Program(call)

    return Entry(Row("gpu", "train", "lstm", SHAPE, "", 1, name), build, lambda result: None)


def test_what_exceeds_the_time_limit_is_skipped_with_a_word():
    """60 s: the first takes 1 s a call and is kept, the second would take 6 · 9 s, the third is short and fits."""
    clock, began = Clock(), []
    deadline = Deadline(60, clock)
    entries = [entry(name, clock, seconds, began) for name, seconds in (("a", 1), ("b", 9), ("c", 0.5))]
    rows = measure(minding(deadline, Group("", entries, Budget(0.5, 1, 1, turn=0))))
    assert [bool(row.seconds) for row in rows] == [True, False, True]
    # of 60 s, 1 went into the first call, 1 into its check, 9 into this one, and 6 are promised
    assert rows[1].note == "skipped: 6 calls of 9.0 s do not fit into the 43 s that are left"
    clock.now = 45.0
    rows = measure(minding(deadline, Group("", [entry("d", clock, 0.1, began)], Budget(0.5, 1, 1, turn=0))))
    assert rows[0].note == "skipped: the time limit is used up" and began == ["a", "b", "c"]


def test_promises_of_a_group_count():
    clock, began = Clock(), []
    entries = [entry(name, clock, 3, began) for name in "abcd"]
    group = minding(Deadline(60, clock), Group("", entries, Budget(0.5, 1, 1, turn=0)))
    group.entries[0].build({})  # 3 s gone, 18 promised: 39 left
    group.entries[1].build({})  # 6 gone, 36 promised: 18 left, below the least
    with pytest.raises(OutOfTime, match="the time limit is used up"):
        group.entries[2].build({})
    assert began == ["a", "b"]


def test_cases_that_are_not_begun_in_time_are_skipped():
    clock = Clock()

    def slow(function):
        clock.now += 30
        return jax.jit(function)

    outcomes = [found for case in contract.compared(Deadline(45, clock), [LSTM], way=slow) for found in case]
    assert [outcome.skipped for outcome in outcomes] == [False] * 5 + [True] * 5
    assert [outcome.ok for outcome in outcomes[:5]] == [True] * 5
    line = report.contract_table(outcomes)[2]
    assert line[:5] == ("JAX's default (TF32 on)", "0 of 0", "5", "–", "–")


def test_the_most_used_shapes_come_first():
    groups = list(speed.groups(speed.Settings(contestants=("jaxrnn",))))
    shapes = list(dict.fromkeys(group.entries[0].row.shape for group in groups))
    assert shapes[0] == (16, 1024, 768, 768) and shapes[-1] == (1, 65536, 32, 32) and len(groups) == 4 * 2 * 2 * 2
    assert groups[0].title == "lstm (16,1024,768,768) train float32"


# ---------------------------------------------------------------- the tolerances


def cut_to_tf32(array, rounded):
    """float32 with the 10 explicit bits of TF32, the others rounded or cut off."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    bits = bits + np.uint32(0xFFF) + (bits >> 13 & 1) if rounded else bits
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.full
@pytest.mark.parametrize("rounded", [True, False], ids=["rounded", "cut off"])
def test_products_in_tf32_are_told_from_exact_ones_and_allowed(rounded, monkeypatch):
    """A case with its products in TF32 is too far away for "highest", near enough for "default"."""
    one = np.float32([1 + 2**-11 + 2**-20])
    assert cut_to_tf32(one, rounded) == (1 + 2**-10 if rounded else 1)
    exact = evaluating.MADE["dot_general"]

    def in_tf32(eqn, params):
        run = exact(eqn, params)
        short = lambda a: cut_to_tf32(a, rounded) if a.dtype == np.float32 else a
        return lambda x, y: run(short(x), short(y))

    case = next(case for case in CASES if case.name.startswith("normalized"))  # the furthest of all
    monkeypatch.setitem(evaluating.MADE, "dot_general", in_tf32)
    found = [o for outcomes in contract.compared(Deadline(1e6), [case], evaluating.evaluated) for o in outcomes]
    highest, default = ([o for o in found if o.precision == p] for p in ("highest", "default"))
    assert [(o.ok, o.note) for o in highest] == [(False, "")] * 5 and [o.ok for o in default] == [True] * 5
    assert min(o.gradient for o in highest) > 3 * contract.ALLOWED["highest"]
    assert max(o.gradient for o in default) > contract.ALLOWED["default"] / 100  # the limit is not far away


@pytest.mark.full
def test_a_fault_is_found_under_either_tolerance():
    """A run that takes no notice of its mask, of its resets: neither is within what TF32 is allowed."""

    def deaf(to):
        def way(function):
            def run(params, xs, carry, options, *weights):
                heard = {name: np.zeros_like(v) if name == to == "resets" else v for name, v in options.items()}
                heard = {name: np.ones_like(v) if name == to == "mask" else v for name, v in heard.items()}
                return evaluating.evaluated(function)(params, xs, carry, heard, *weights)

            return run

        return way

    for to in ("mask", "resets"):
        found = [o for outcomes in contract.compared(Deadline(1e6), [LSTM], deaf(to)) for o in outcomes]
        told = {(o.flags, o.ok) for o in found}
        heard = {"mask": ("gaps", "lengths_gaps_resets"), "resets": ("resets", "lengths_gaps_resets")}[to]
        assert told == {(flags.name, flags.name not in heard) for flags in contract.SETS}


def test_arrays_of_zeros_and_nan():
    one, zero = np.ones(2), np.zeros(2)
    assert doctor.furthest([one, zero], [one, zero]) == 0
    assert doctor.furthest([one, 1e-30 * one], [one, zero]) == np.inf
    assert doctor.furthest([2 * one, zero], [one, zero]) == 1
    assert np.isnan(doctor.furthest([zero * np.nan], [zero]))
    nan = report.contract_table([Outcome("", "", "default", 0.0, np.nan), Outcome("", "", "default", 0.0, 0.0)])[2]
    assert nan[1] == "1 of 2" and nan[4] == "nan"
    assert not Outcome("", "", "default", np.nan, 0.0).ok and not Outcome("", "", "default", 0.0, np.nan).ok


def test_a_case_that_cannot_run_is_named():
    def way(function):
        def run(*args):
            raise RuntimeError("ptxas: too old\nmore")

        return run

    (first, *_), _ = contract.compared(Deadline(1e6), [LSTM], way)
    assert not first.ok and not first.skipped and first.note == "failed: RuntimeError: ptxas: too old"
    found = report.Findings("A GPU.", 0, [first], [])
    assert report.wrong(first) in report.paragraphs(found)


# ---------------------------------------------------------------- the page


def test_the_table_of_made_up_timings(tmp_path):
    def row(contestant, seconds, dtype="", quantity="train", **more):
        return Row("gpu", quantity, "lstm", SHAPE, dtype, 1, contestant, seconds, **more)

    times = (0.9e-3, 1e-3, 1.2e-3)
    rows = [
        row("jaxrnn", times),
        row("torch", tuple(t / 2 for t in times)),
        row("cudnn", (), note="skipped: the time limit is used up"),
        row("torch", tuple(3 * t for t in times), dtype="float16"),
    ]
    outcomes = [Outcome("a", "plain", "highest", 1e-6, 2e-6), Outcome("b", "plain", "highest", 3e-6, 1e-6)]
    (page := tmp_path / "page.md").write_text(PAGE)
    text = report.write(tmp_path, report.Findings("NVIDIA X, jax 0.", 0, outcomes, rows), page)
    assert page.read_text() == PAGE.replace("not yet\n", text)
    assert text.startswith("NVIDIA X, jax 0.\n\n")
    assert "| float32 (TF32 off) | 2 of 2 | 0 | 3.0e-06 | 2.0e-06 | 1.0e-04 |" in text
    assert "| B, T, I, H | jaxrnn | torch |" in text and "**Forward, ms**" not in text
    assert "| lstm 4,6,3,8 | 1.0 ± 0.075 | **0.5 ± 0.037** |" in text
    assert "| float16 lstm 4,6,3,8 | – | **3.0 ± 0.22** |" in text
    assert "- skipped: the time limit is used up: cudnn (lstm 4,6,3,8 train)" in text


def test_the_page_invents_no_figure():
    """It says so until a run has written it; what a run writes begins with the machine."""
    page = ROOT / "docs/results/gpu.md"
    assert parts_of(page, [report.PART]) == [report.PART]
    written = page.read_text(encoding="utf-8").partition("-->\n")[2].partition("<!-- gpu:end")[0]
    assert written.startswith(("Not yet measured on a GPU", "As run on "))
    assert written.startswith("As run on ") or "|" not in written
