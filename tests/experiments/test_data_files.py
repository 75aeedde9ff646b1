"""Files of one's own: what is read of each kind, and the one line that each mistake is refused with."""

import json

import numpy as np
import pytest
import scipy.io

from experiments.data import files, splits
from experiments.data.records import DataError

RULE = splits.Rule(validation=0.2, test=0.2, seed=0)
RNG = np.random.default_rng(0)
LENGTHS = (3, 1, 4, 2, 5, 3, 2, 4, 1)
XS = [RNG.normal(size=(n, 2)).astype(np.float32) for n in LENGTHS]
TARGETS = [RNG.normal(size=(n, 1)).astype(np.float32) for n in LENGTHS]
LABELS = [("no", "yes")[n % 2] for n in range(9)]
PARTS = ["train"] * 4 + ["validation", "valid", "test", "test", "test"]
NUMBERS = {"id": [f"s{n}" for n in range(9)], "label": LABELS, "split": PARTS}


def csv(path):
    rows = ["sequence,f1,f2,label,split,target"]
    for n, (x, y) in enumerate(zip(XS, TARGETS, strict=True)):
        rows += [
            f"s{n},{a!r},{b!r},{LABELS[n]},{PARTS[n]},{c[0]!r}"
            for (a, b), c in zip(x.tolist(), y.tolist(), strict=True)
        ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8-sig")  # as spreadsheets write it


def jsonl(path):
    rows = [
        {"id": f"s{n}", "x": x.tolist(), "target": y.tolist(), "label": LABELS[n], "split": PARTS[n]}
        for n, (x, y) in enumerate(zip(XS, TARGETS, strict=True))
    ]
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")


def npz(path):
    np.savez(path, x=np.concatenate(XS), target=np.concatenate(TARGETS), lengths=LENGTHS, **NUMBERS)


def padded_npz(path):
    x, target = np.full((9, 6, 2), 7.0, np.float32), np.zeros((9, 6, 1), np.float32)
    for n, length in enumerate(LENGTHS):
        x[n, :length], target[n, :length] = XS[n], TARGETS[n]
    np.savez(path, x=x, target=target, lengths=np.array(LENGTHS, float), **NUMBERS)


def mat(path):
    def cells(arrays):
        column = np.empty((len(arrays), 1), object)
        column[:, 0] = arrays
        return column

    words = {key: cells(value) for key, value in NUMBERS.items()}
    scipy.io.savemat(path, {"x": cells(XS), "target": cells(TARGETS), **words})


@pytest.mark.parametrize(
    ("suffix", "write"), [(".csv", csv), (".jsonl", jsonl), (".npz", npz), (".npz", padded_npz), (".mat", mat)]
)
def test_every_kind_holds_the_same_sequences(tmp_path, suffix, write):
    path = tmp_path / f"sequences{suffix}"
    write(path)
    got = splits.split(path, files.read(path), RULE, wants=("label", "target"))
    assert got.classes == ("no", "yes") and got.features == 2 and got.outputs == 1 and got.rule == "the file"
    for part, places in ((got.train, range(4)), (got.validation, (4, 5)), (got.test(), (6, 7, 8))):
        assert part.ids == tuple(f"s{n}" for n in places)
        assert part.labels.tolist() == [n % 2 for n in places] and part.labels.dtype == np.int32
        for n, x, target in zip(places, part.xs, part.targets, strict=True):
            np.testing.assert_array_equal(x, XS[n])
            np.testing.assert_array_equal(target, TARGETS[n])
            assert x.dtype == target.dtype == np.float32


ROLLS = {"train": [[[21, 108], [], [60, -1]], [[40.0]]], "valid": [[[64], [64]]], "test": [[[22]]]}


@pytest.mark.parametrize("suffix", [".json", ".mat"])
def test_piano_rolls_of_the_field(tmp_path, suffix):
    path = tmp_path / f"chorales{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(ROLLS))
    else:
        cells = {key: np.empty((1, len(ROLLS[of])), object) for key, of in zip(MAT, ROLLS, strict=True)}
        for (key, _), of in zip(cells.items(), ROLLS, strict=True):
            for n, piece in enumerate(ROLLS[of]):
                roll = np.zeros((len(piece), 88), np.uint8)
                for t, step in enumerate(piece):
                    roll[t, [int(note) - 21 for note in step if note > 0]] = 1
                cells[key][0, n] = roll
        scipy.io.savemat(path, cells)
    got = splits.split(path, files.read(path), RULE)
    assert got.sizes == {"train": 2, "validation": 1, "test": 1} and got.classes == () and got.features == 88
    first = got.train.xs[0]
    assert first.shape == (3, 88) and np.argwhere(first).tolist() == [[0, 0], [0, 87], [2, 39]]
    assert np.flatnonzero(got.test().xs[0][0]).tolist() == [1]


def test_files_of_the_archive_in_two_parts(tmp_path):
    for part, places in (("TRAIN", range(6)), ("TEST", (6, 7, 8))):
        rows = [":".join([*(",".join(map(repr, row)) for row in XS[n].T.tolist()), LABELS[n]]) for n in places]
        (tmp_path / f"waves_{part}.ts").write_text("\n".join(["# waves", "@dimensions 2", TS, *rows]))
    path = tmp_path / "waves_TRAIN.ts"
    got = splits.split(path, files.read(path), splits.Rule(0.4, 0.2, 0), wants=("label",))
    held = [*zip(got.train.ids, got.train.xs, strict=True), *zip(got.validation.ids, got.validation.xs, strict=True)]
    assert sorted(name for name, _ in held) == [f"train{n}" for n in range(1, 7)]
    for name, x in held:
        np.testing.assert_array_equal(x, XS[int(name[5:]) - 1])
    test = got.test()
    assert test.ids == ("test1", "test2", "test3") and test.labels.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(test.xs[1], XS[7])
    before = files.digest(path)
    (tmp_path / "waves_TEST.ts").write_text("")
    assert files.digest(path) != before


MAT = ("traindata", "validdata", "testdata")
HEADER = "sequence,f1,f2,label\n"
TS = "@classLabel true no yes\n@data\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", HEADER + "s,1,x,no\n", "a.csv, row 2, column 'f2': expected a finite number, got 'x'; correct"),
        ("a.csv", HEADER + "s,1,2,no\ns,1,nan,no\n", "a.csv, row 3, column 'f2': expected a finite number, got 'nan'"),
        ("a.csv", HEADER + "s,1,,no\n", "row 2, column 'f2': expected a finite number, got an empty cell"),
        ("a.csv", HEADER + "s,1_0,2,no\n", "row 2, column 'f1': expected a finite number, got '1_0'"),
        ("a.csv", HEADER + "s,1,no\n", "a.csv, row 2: expected 4 cells, as in row 1, got 3; give every step the same"),
        ("a.csv", HEADER + "s,1,2,no\ns,1,2,yes\n", "row 3, column 'label': got 'yes', but 'no' in row 2 of the same"),
        ("a.csv", HEADER + "s,1,2,no\nt,1,2,no\ns,1,2,no\n", "row 4, column 'sequence': 's' begins again after other"),
        ("a.csv", HEADER + ",1,2,no\n", "row 2, column 'sequence': is empty"),
        ("a.csv", HEADER + "s,1,2,\n", "row 2, key 'label': is missing; give each sequence a class"),
        ("a.csv", "sequnce,f1,label\ns,1,no\n", "column 'sequence': is missing; did you mean 'sequnce'?; there are"),
        ("a.csv", "sequence,label\ns,no\n", "column 'f1': is missing; there are 'sequence', 'label'; add a column"),
        ("a.csv", "sequence,f1,f1\ns,1,2\n", "row 1, column 3: expected a name of its own, got 'f1'; rename"),
        ("a.csv", "sequence;f1;label\ns;1;no\n", "row 1: the cells are separated by ';'; separate them by commas"),
        ("a.csv", "sequence,f1\ns,1\n", "row 2, key 'label': is missing, and this experiment needs it; give each"),
        ("a.csv", HEADER, "a.csv: holds no sequences; give some for each split"),
        ("a.csv", "", "a.csv, row 1: expected the names of the columns, got nothing"),
        (
            "a.csv",
            (HEADER + "s,1,2,caf\xe9\n").encode("latin1"),
            "a.csv, row 2: is not UTF-8: byte 0xe9; save the file in",
        ),
        (
            "a.jsonl",
            '{"x": [[1], [2, 3]], "label": 1}',
            "line 1, key 'x', step 2: expected 1 features, as at step 1, got 2",
        ),
        (
            "a.jsonl",
            '{"x": [[1], ["2"]], "label": 1}',
            "line 1, key 'x', step 2, feature 1: expected a number, got '2'",
        ),
        (
            "a.jsonl",
            '\n{"x": [[NaN]], "label": 1}',
            "line 2, key 'x', step 1, feature 1: expected a finite number in float32",
        ),
        (
            "a.jsonl",
            '{"x": [[1e39]], "label": 1}',
            "key 'x', step 1, feature 1: expected a finite number in float32, got 1e+39",
        ),
        ("a.jsonl", '{"x": [], "label": 1}', "line 1, key 'x': is an empty sequence; leave it out"),
        ("a.jsonl", '{"x": [1, 2], "label": 1}', "line 1, key 'x', step 1: expected a list of numbers, got 1"),
        ("a.jsonl", '{"X": [[1]]}', "line 1, key 'x': is missing; there are 'X'; give the steps of the sequence there"),
        (
            "a.jsonl",
            '{"x": [[1]], "lable": 1}',
            "line 1, key 'lable': is unknown; did you mean 'label'?; the keys are x",
        ),
        (
            "a.jsonl",
            '{"x": [[1]], "label": 0.5}',
            "line 1, key 'label': expected a class, got 0.5; give a whole number",
        ),
        ("a.jsonl", '{"x": [[1]], "label": [1]}', "line 1, key 'label': expected one value for the sequence; write a"),
        ("a.jsonl", '{"x": [[1]]', "a.jsonl, line 1: is not JSON: "),
        ("a.jsonl", "[1]", "line 1: expected an object, got '[1]'"),
        ("a.jsonl", "[" * 5000, "line 1: is nested too deeply"),
        (
            "a.jsonl",
            '{"x": [[1]], "label": 1, "split": "dve"}',
            "line 1, key 'split': expected train, validation or test, got",
        ),
        (
            "a.jsonl",
            '{"x":[[1]],"label":1}\n{"x":[[1,2]],"label":1}',
            "line 2, key 'x': expected 1 features, as in line 1, got 2",
        ),
        (
            "a.jsonl",
            '{"x":[[1,2,3],[1,2,3]],"label":1}\n{"x":[[1],[2]],"label":1}',
            "key 'x': expected 3 features, as in line 1, got 1: all have 2 rows, as if features came first; transpose",
        ),
        (
            "a.jsonl",
            '{"x":[[1]],"label":1,"id":1}\n{"x":[[1]],"label":1,"id":1}',
            "line 2, key 'id': '1' is that of line 1 too",
        ),
        (
            "a.jsonl",
            '{"x":[[1]],"label":1,"target":[[1],[2]]}',
            "line 1, key 'target': has 2 steps, but x has 1; give a target for each step",
        ),
        (
            "a.jsonl",
            '{"x":[[1]],"label":1,"split":"train"}\n{"x":[[1]],"label":1,"split":"val"}',
            "split 'test': is empty: the file gives 1 train, 1 validation, 0 test; give more sequences",
        ),
        (
            "a.json",
            '{"train": [[[60]]], "test": []}',
            "a.json, key 'valid': is missing; there are 'train', 'test'; give all",
        ),
        (
            "a.json",
            '{"train": [[[20]]], "valid": [], "test": []}',
            "key 'train', sequence 1, step 1: expected MIDI numbers from 21",
        ),
        (
            "a.json",
            '{"train": [[60]], "valid": [], "test": []}',
            "sequence 1, step 1: expected a list of MIDI numbers, got 60",
        ),
        ("a.json", "[]", "a.json: expected an object with train, valid and test; for one object a line call it .jsonl"),
        ("a.json", "{\n,}", "a.json, row 2: is not JSON"),
        ("a.npz", "no zip", "a.npz: is not a readable .npz file: "),
        ("a.mat", "no mat", "a.mat: is not a readable .mat file: "),
        (
            "a.ts",
            TS + "1,2:3:no",
            "a.ts, row 3, feature 2: has 1 steps, but feature 1 has 2; give every feature the same",
        ),
        ("a.ts", TS + "1,?:3,4:no", "a.ts, row 3, feature 1, step 2: expected a finite number, got '?'; fill it in"),
        (
            "a.ts",
            "1,2:3,4:no",
            "a.ts, row 1: expected @data before it, got '1,2:3,4:no'; begin with the archive's header",
        ),
        ("a.ts", "@timestamps true\n", "a.ts, row 1: has times of its own for each step; give steps at equal times"),
        (
            "a.wav",
            "",
            "a.wav: ends in '.wav', which is not read; the kinds are .npz, .csv, .tsv, .jsonl, .mat, .json, .ts",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    path = files.Path(name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(path, message)


def refused(path, message):
    with pytest.raises(DataError) as error:
        splits.split(path, files.read(path), RULE, wants=("label",) if path.suffix not in (".json",) else ())
    assert message in str(error.value) and str(error.value).startswith(str(path)) and "\n" not in str(error.value)


X3 = np.zeros((2, 3, 1))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": X3}, "key 'x': is missing; there are 'y'; x is (N, T, I), with lengths"),
        ({"x": X3, "labels": [0, 1]}, "key 'labels': is unknown; did you mean 'label'?; the keys are x"),
        ({"x": X3[0]}, "key 'lengths': is missing, and x is (3, 1); x is (N, T, I)"),
        ({"x": X3[0, 0]}, "key 'x': expected 2 or 3 axes, got (1,)"),
        ({"x": X3.astype(str)}, "key 'x': expected numbers, got <U"),
        ({"x": X3, "label": [0]}, "key 'label': has 1 entries for 2 sequences; give one for each"),
        ({"x": X3, "lengths": [3, 4]}, "key 'lengths', sequence 2: expected at most 3, the steps of x, got 4"),
        ({"x": X3, "lengths": [3, 0], "label": [0, 1]}, "sequence 2, key 'x': is an empty sequence; leave it out"),
        ({"x": X3[0], "lengths": [1, 1]}, "key 'lengths': add up to 2, but x has 3 steps"),
        ({"x": X3, "lengths": [1, 0.5]}, "key 'lengths': expected whole numbers from 0"),
        ({"x": X3, "label": [0, np.nan]}, "sequence 2, key 'label': expected a class, got nan"),
        (
            {"x": np.full((2, 3, 1), np.inf), "label": [0, 1]},
            "sequence 1, key 'x', step 1, feature 1: expected a finite",
        ),
        (
            {"x": np.array([X3[0], X3[1, :2]], object)},
            "key 'x': is an array of objects, which a file can make run anything",
        ),
    ],
)
def test_wrong_arrays(tmp_path, monkeypatch, arrays, message):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **arrays)
    refused(files.Path("a.npz"), message)


def rolls_with(roll):
    return {key: np.array([None, roll], object)[1:] for key in MAT}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            rolls_with(np.zeros((88, 5))),
            "key 'traindata', sequence 1: expected (T, 88), time first, got (88, 5), keys first; tran",
        ),
        (
            rolls_with(np.zeros((5, 12))),
            "key 'traindata', sequence 1: expected (T, 88), time first, got (5, 12); give every",
        ),
        (
            rolls_with(np.full((2, 88), 3)),
            "key 'traindata', sequence 1, step 1: expected 0 or 1 for each key, got 3 for key 1",
        ),
        (
            {"traindata": np.zeros((2, 88))},
            "key 'traindata': expected a cell array, got float64 (2, 88); one cell a piece",
        ),
        (
            {k: v for k, v in rolls_with(np.zeros((1, 88))).items() if k != "testdata"},
            "key 'testdata': is missing; there are",
        ),
    ],
)
def test_wrong_piano_rolls(tmp_path, monkeypatch, cells, message):
    monkeypatch.chdir(tmp_path)
    scipy.io.savemat("a.mat", cells)
    refused(files.Path("a.mat"), message)


def test_a_folder_and_a_file_that_is_not_there(tmp_path):
    (tmp_path / "waves.csv").write_text(HEADER)
    with pytest.raises(DataError, match=r"is a folder; name a file in it, .*waves\.csv, say"):
        files.read(tmp_path)
    with pytest.raises(DataError, match=r"wave\.csv: no such file; did you mean '.*waves\.csv'\?"):
        files.read(tmp_path / "wave.csv")


def test_labels_outside_the_named_classes(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(f'{{"x": [[1]], "label": {n}}}' for n in (1, 2, 7)))
    with pytest.raises(
        DataError, match="line 3, key 'label': expected one of the classes 1, 2, got 7; correct the label"
    ):
        splits.split(path, files.read(path), splits.Rule(0.3, 0.3, 0), classes=(1, 2))


def test_matlab_without_scipy_names_the_extra(tmp_path, monkeypatch):
    mat(tmp_path / "a.mat")
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(
        DataError, match=r"scipy, which reads \.mat files, is not installed; pip install 'jaxrnn\[train\]'"
    ):
        files.read(tmp_path / "a.mat")
