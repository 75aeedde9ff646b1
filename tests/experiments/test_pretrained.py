"""Other people's networks: g2p-en's arrays against its equations in NumPy, gradients by letters, what is refused.

The LSTM of silero-vad, which needs onnx: tests/interop/test_pretrained_onnx.py.
"""

import importlib.util

import numpy as np
import pytest

from experiments.data.records import DataError
from experiments.pretrained import explaining, files, g2p_en, showing, sounds
from experiments.runner.command import main
from tests.experiments import small_g2p
from tests.experiments.tiny import ROOT, options

SMALL = ["repeats=1", "sound.seconds=2.0", "words=['cab','ab']", "points.starts=2", "points.steps=5"]
SMALL += ["points.inputs=['S','T']", "points.relaxing=5"]
WORDS = ["cab", "a", "bead"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("g2p_en")


@pytest.fixture(scope="module")
def path(folder):
    return small_g2p.write(folder)


def test_the_source_is_executed_without_its_imports_and_agrees_with_ours(path):
    model, package = g2p_en.read(path), g2p_en.published(path)
    found, unlike = g2p_en.differences(model, package, WORDS)
    assert unlike == [] and len(found) == 3
    assert max(found.values()) < 1e-5  # float32, up to 20 steps of a few units
    said = [package.predict(word) for word in WORDS]
    assert len({len(phonemes) for phonemes in said}) > 1, "words of one length do not tell whether each ends by itself"
    broken = model._replace(params=model.params._replace(letters=model.params.letters.at[3].add(0.1)))
    assert g2p_en.differences(broken, package, WORDS)[0]["encoder"] > 1e-3


def test_symbols_are_in_the_order_of_the_package():
    assert len(g2p_en.PHONEMES) == 74 and len(g2p_en.GRAPHEMES) == 29
    for place, name in ((2, "<s>"), (3, "</s>"), (4, "AA0"), (22, "B"), (35, "F"), (61, "TH"), (65, "UW"), (73, "ZH")):
        assert g2p_en.PHONEMES[place] == name
    tokens, lengths = g2p_en.tokens_of(["ab", "z'x"])
    assert tokens.T.tolist() == [[3, 4, 2, 0], [28, 1, 26, 2]] and lengths.tolist() == [3, 4]


def test_words_are_those_asked_for_and_those_of_the_list(path, tmp_path):
    assert g2p_en.words(path, ["lead", "ox"]) == ["lead", "ox", "abuse"]
    assert g2p_en.words(tmp_path / "alone.npz", ["ox"]) == ["ox"]


@pytest.mark.full
def test_saliency_is_the_gradient_of_what_is_said(tmp_path, x64):
    model = g2p_en.read(small_g2p.write(tmp_path, dtype="float64"))
    package = g2p_en.published(tmp_path / "small.npz")
    found = explaining.saliency(model, WORDS)
    assert found.phonemes == [package.predict(word) for word in WORDS]
    b, word = 2, WORDS[2]

    def log_p(vectors):
        """(N,): by the package's own functions, of the letters' vectors (T, E)."""
        weights = {
            p: [getattr(package, f"{p}_{name}") for name in ("w_ih", "w_hh", "b_ih", "b_hh")] for p in ("enc", "dec")
        }
        h, token, out = package.gru(vectors[None], len(vectors), *weights["enc"])[:, -1], 2, []
        for phoneme in found.phonemes[b]:
            h = package.grucell(package.dec_emb[[token]], h, *weights["dec"])
            y = (h @ package.fc_w.T + package.fc_b)[0]
            token = g2p_en.PHONEMES.index(phoneme)
            out.append(y[token] - np.log(np.exp(y).sum()))
        return np.array(out)

    vectors = package.encode(word)[0]
    N, ε = len(found.phonemes[b]), 1e-5
    slopes = np.zeros((N, *vectors.shape))
    for place in np.ndindex(vectors.shape):
        step = np.zeros_like(vectors)
        step[place] = ε
        slopes[(slice(None), *place)] = (log_p(vectors + step) - log_p(vectors - step)) / (2 * ε)
    T = len(vectors)
    np.testing.assert_allclose(found.gradient[:N, :T, b], np.linalg.norm(slopes, axis=-1), atol=1e-8)
    without = np.where((np.arange(T) == 1)[:, None], package.enc_emb[1], vectors)  # the second letter unknown
    np.testing.assert_allclose(found.occlusion[:N, 1, b], log_p(vectors) - log_p(without), atol=1e-10)
    same, chance = found.agreement(WORDS)
    counts = [len(phonemes) for phonemes in found.phonemes]
    assert 0 <= same <= 1 and chance == pytest.approx(np.average([1 / 3, 1, 1 / 4], weights=counts))
    assert showing.shares(found, b, word).max(1) == pytest.approx(np.ones(N))


@pytest.mark.full
def test_the_decoder_stays_at_its_fixed_points(path):
    model, package = g2p_en.read(path), g2p_en.published(path)
    settings = explaining.Points(inputs=("S", "T"), starts=4, relaxing=300)
    found = explaining.fixed_points(model, WORDS, settings)
    assert {point.input for point in found} == {"S", "T"} and all(point.speed <= 1e-7 for point in found)
    weights = [getattr(package, f"dec_{name}") for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    for point in found:
        if point.stable:  # from anywhere near: by the package's own step
            h = np.asarray(explaining.near(model, WORDS, settings))
            for _ in range(2000):
                h = package.grucell(
                    np.repeat(package.dec_emb[[g2p_en.PHONEMES.index(point.input)]], len(h), 0), h, *weights
                )
            said = {g2p_en.PHONEMES[token] for token in (h @ package.fc_w.T + package.fc_b).argmax(1)}
            assert point.says in said
    assert "S: " in showing.in_words(("S", "T"), found)


def test_frames_overlap_by_64_samples():
    samples = np.arange(1, 1101, dtype=np.float32)
    frames = sounds.frames(samples)
    assert frames.shape == (3, 576)
    for n, frame in enumerate(frames):
        at = np.arange(512 * n - 64, 512 * (n + 1))
        there = (at >= 0) & (at < 1100)
        np.testing.assert_array_equal(frame, np.where(there, at + 1, 0))


def test_sounds_are_syllables_between_pauses_and_the_same_again():
    sound, again = sounds.syllables(4.0, 3), sounds.syllables(4.0, 3)
    np.testing.assert_array_equal(sound.samples, again.samples)
    assert len(sound.samples) == len(sound.voiced) == 64_000 and np.abs(sound.samples).max() < 1
    loud = [np.sqrt(np.mean(sound.samples[sound.voiced == voiced] ** 2)) for voiced in (True, False)]
    assert loud[0] > 5 * loud[1] > 0
    share = showing.by_frame(sound, 125)
    assert share.shape == (125,) and share.mean() == pytest.approx(sound.voiced.mean())


def run(out, *settings):
    return main(["run", str(ROOT / "configs/pretrained.toml"), "--out", str(out), *options(*SMALL, *settings)])


def test_what_is_missing_is_named_before_a_run_has_a_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest, real=importlib.util.find_spec: (
            None if name in ("silero_vad", "g2p_en") else real(name, *rest)
        ),
    )
    assert run(tmp_path / "runs") == 2
    assert capsys.readouterr().err == (
        f"files.silero: silero_vad, whose network the experiment runs, is not installed; {files.EXTRA}\n"
    )
    assert run(tmp_path / "runs", f"files.silero={tmp_path / 'no.onnx'}") == 2
    assert f"files.silero: {tmp_path / 'no.onnx'}: no such file; give a file like" in capsys.readouterr().err
    assert run(tmp_path / "runs", "words=['Ab']") == 2
    assert "words: expected words of the letters a to z, got 'Ab'" in capsys.readouterr().err
    assert run(tmp_path / "runs", "points.inputs=['QQ']") == 2
    assert "points.inputs: expected phonemes of g2p-en, got 'QQ'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_arrays_that_are_others_are_refused(path, tmp_path):
    with np.load(path) as arrays:
        a = dict(arrays)
    for change, told in (({"dec_emb": a["dec_emb"][1:]}, "73 rows, for 74"), ({"enc_w_hh": a["enc_w_hh"].T}, "enc|hh")):
        np.savez(tmp_path / "other.npz", **{**a, **change})
        with pytest.raises(DataError, match=rf"^files.g2p_en: .*other.npz: expected the arrays of g2p-en's .*({told})"):
            g2p_en.read(tmp_path / "other.npz")
    del a["fc_w"]
    np.savez(tmp_path / "other.npz", **a)
    with pytest.raises(DataError, match="fc_w"):
        g2p_en.read(tmp_path / "other.npz")
    (tmp_path / "other.npz").write_text("no arrays")
    with pytest.raises(DataError, match=r"other.npz: expected the arrays"):
        g2p_en.read(tmp_path / "other.npz")
    with pytest.raises(DataError, match=r"g2p.py: expected g2p-en's source with its class G2p"):
        g2p_en.published(tmp_path / "other.npz")
