"""Rows of a training in a file: every one on a line of its own, whole, and of as many members as there are."""

import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import training
from jaxrnn.training.checkpoints import CheckpointError
from jaxrnn.training.history import from_rows
from jaxrnn.training.records import Records, to_json

# What str.splitlines, editors or other readers take for the end of a line; half a surrogate pair; what JSON escapes.
STRANGE = [*'\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\ud800\0"\\ä😀']
LABELS = [{"model": f"a{character}b", f"k{character}": n} for n, character in enumerate(STRANGE)]
N = len(LABELS)


class Crash(Exception):
    pass


def crash(result):
    if result.step == 3:
        raise Crash


def block(state):
    return state + 1, {"loss": jnp.arange(float(N)) * (state + 1)}, {}


def fit(directory, **options):
    given = {"steps": 4, "block_steps": 1, "labels": LABELS, "save_every": 2, "checkpoint": directory}
    return training.fit(block, jnp.zeros((), jnp.int32), **{**given, **options})


def test_every_row_is_one_line_whatever_its_strings_hold(tmp_path):
    """For this reader and for others; a training goes on from them."""
    whole = fit(tmp_path / "whole")
    with pytest.raises(Crash):
        fit(tmp_path / "crashed", on_block=crash)
    again = fit(tmp_path / "crashed")
    content = (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert (tmp_path / "crashed/metrics.jsonl").read_bytes() == content
    for a, b in zip(again.history, whole.history, strict=True):
        np.testing.assert_array_equal(a.values["loss"], b.values["loss"])
    expected = [label | {"step": step, "loss": n * step} for step in range(1, 5) for n, label in enumerate(LABELS)]
    for lines in (content.decode().splitlines(), content.decode().split("\n")[:-1]):
        rows = [json.loads(line) for line in lines]
        assert rows == expected
    assert list(Records(tmp_path / "whole/metrics.jsonl").rows()) == rows
    assert json.loads(to_json(STRANGE)) == STRANGE and "ä😀" in to_json({"a": "ä😀"})


def test_rows_of_earlier_versions_are_read(tmp_path):
    """They hold these characters as they are; Windows wrote \\r\\n."""
    path, labels = tmp_path / "m.jsonl", [{"model": "a\u2028b\x85c"}]
    lines = [json.dumps({**labels[0], "step": step}, ensure_ascii=False) + "\n" for step in (1, 2)]
    for ending in ("\n", "\r\n"):
        path.write_bytes("".join(lines).replace("\n", ending).encode())
        records = Records(path)
        assert list(records.rows()) == [{**labels[0], "step": 1}, {**labels[0], "step": 2}]
        assert records.rewind(labels, 2) == "".join(lines)
        assert [result.step for result in from_rows("".join(lines), labels)] == [1, 2]
        assert records.rewind(labels, 1) == lines[0] and path.read_bytes() == lines[0].encode()


@pytest.mark.parametrize("half", [b'{"model": "a', b'{"model": "a", "step": 3}', b"\xff\xfe", b"{\xe2\x80"])
def test_half_a_line_is_cut_and_told(tmp_path, half):
    path, labels = tmp_path / "m.jsonl", [{"model": "a"}]
    records = Records(path)
    records.append([{"step": 1}], labels)
    whole = path.read_bytes()
    for go_on in (lambda: records.rewind(labels, 5), lambda: Records(path).append([{"step": 2}], labels)):
        path.write_bytes(whole + half)
        assert [row["step"] for row in records.rows()] == [1]
        assert Records(path, write=False).rewind(labels, 5).encode() == whole and path.read_bytes() == whole + half
        with pytest.warns(UserWarning, match=f"{path}: line 2, the last, was half a line, .* and is cut off: ") as told:
            go_on()
        assert len(told) == 1 and told[0].filename == __file__
        assert path.read_bytes()[: len(whole)] == whole and path.read_bytes()[-1:] == b"\n"
    assert list(records.rows()) == [{"model": "a", "step": 1}, {"model": "a", "step": 2}]
    path.write_bytes(half)  # the first one
    with pytest.warns(UserWarning, match="line 1, the last"):
        assert records.rewind(labels, 5) == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records.append([{"step": 1}], labels)
        records.append([{"step": 2}], labels)
    assert [row["step"] for row in records.rows()] == [1, 2]


@pytest.mark.parametrize("place", [1, 2, 3])
@pytest.mark.parametrize(
    "line, got",
    [(b"2026-11-28 started", "2026-11-28 started"), (b"", "an empty line"), (b"[1]", r"\[1\]"), (b"3", "3"),
     (b"\xff{}", "\ufffd{}"), (b"[" * 100_000, r"\[{80}"), (b'{"step": 1} {"step": 2}', r'{"step": 1} {"step": 2}')],
    ids=["text", "empty", "list", "number", "bytes", "deep", "two"],
)  # fmt: skip
def test_a_foreign_line_is_told_with_its_number(tmp_path, place, line, got):
    path, labels = tmp_path / "m.jsonl", [{"model": "a"}]
    Records(path).append([{"step": 1}], labels)
    Records(path).append([{"step": 2}], labels)
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(place - 1, line + b"\n")
    path.write_bytes(b"".join(lines))
    for read in (lambda: list(Records(path).rows()), lambda: Records(path).rewind(labels, 1)):
        with pytest.raises(CheckpointError, match=f"^{path}, line {place}: expected a row in JSON, got {got}; rem"):
            read()
        assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("row", [{"model": "a"}, {"model": "a", "step": "2"}, {"model": "a", "step": True}])
def test_a_row_of_ours_has_a_step(tmp_path, row):
    path = tmp_path / "m.jsonl"
    path.write_text('{"note": "of others"}\n' + json.dumps(row) + "\n")
    with pytest.raises(CheckpointError, match=r"m.jsonl, line 2: expected a row with a whole number as its \"step\""):
        Records(path).rewind([{"model": "a"}], 1)
    assert Records(path).rewind([{"model": "b"}], 1) == ""


@pytest.mark.parametrize(
    "labels, error, message",
    [
        (LABELS[:1], ValueError, rf"there are 1 labels, .* but the measure 'loss' has the shape \({N},\); give"),
        (LABELS + [{"more": 1}], ValueError, rf"there are {N + 1} labels, .* or measure \({N + 1},\)"),
        ([], ValueError, r"labels must be dicts, one a member, got \[\]; give \[{'seed': 0}\], say, or None"),
        ({"seed": 1}, TypeError, "labels must be dicts, one a member, got {'seed': 1}"),
        (["gru"], TypeError, "labels must be dicts, one a member, got "),
        (3, TypeError, "labels must be a sequence, got 3"),
        ([{"cell": print}], TypeError, "labels must be JSON: .* not JSON serializable; give numbers and strings"),
        (LABELS[:1] * N, ValueError, rf"labels must tell the members apart, got {{.*}} {N} times; add a number"),
        ([{"step": 1}], ValueError, "'step' cannot stand in a label: a row has it already"),
        ([{"not_finite": 1}], ValueError, "'not_finite' cannot stand in a label"),
    ],
)
@pytest.mark.parametrize("records", [False, True])
def test_labels_are_as_many_as_members(tmp_path, labels, error, message, records):
    """Whether or not rows are written: none is, and no block is lost."""
    path = tmp_path / "m.jsonl"
    with pytest.raises(error, match=f"training.fit: {message}"):
        fit(None, labels=labels, records=Records(path) if records else None)
    assert not path.exists()


def test_rows_of_labels_that_hold_anothers_stay(tmp_path):
    """One training after the other in one file: the second does not take the rows of the first for its own."""
    records, more, less = Records(tmp_path / "m.jsonl"), [{"model": "gru", "seed": 3}], [{"model": "gru"}]
    first = records.append([{"loss": 0.5, "step": 1}, {"loss": 0.25, "step": 2}], more * 2)
    assert records.rewind(less, -1) == ""
    second = records.append([{"loss": 0.75, "step": 1}], less)
    assert records.rewind(more, 2) == first and records.rewind(less, 2) == second
    assert records.rewind(less, 0) == "" and records.path.read_text() == first
    with pytest.raises(ValueError, match=r"Records.append: every row needs a step, got \[{'loss': 1}\]; give"):
        records.append([{"loss": 1}], less)


def test_what_is_not_finite_has_as_many_members():
    def block(state):
        return state, {"loss": jnp.zeros(2)}, {"loss": jnp.zeros((), jnp.int32)}

    with pytest.raises(ValueError, match=r"there are 2 labels, .* the nonfinite 'loss' has the shape \(\)"):
        training.fit(block, jnp.zeros(()), steps=1, block_steps=1, labels=[{"seed": 0}, {"seed": 1}])
    with pytest.raises(
        ValueError, match=r"one place for each quantity, got more for 'loss', of shape \(2,\); give lab"
    ):
        training.fit(
            lambda s: (s, {}, {"loss": jnp.ones(2, int)}), jnp.zeros(()), steps=1, block_steps=1, nonfinite="record"
        )
