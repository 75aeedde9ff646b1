"""Polyphonic music: what a NADE says by brute force, chorales of MusicXML files, one look at the test split."""

import importlib.util
import itertools
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import source
from experiments.music import composing, data
from experiments.music.densities import NADEParams, independent, nade
from experiments.music.model import model
from experiments.runner.command import main
from tests.documents import ROOT

K, H = 4, 3
SMALL = ["train.steps=2", "train.log_every=1", "train.seeds=[0,1]", "train.batch_size=2", "data.buckets=1"]
SMALL += [
    f"model.variants.{name}.{key}=2"
    for name in ("gru-46", "lstm-36", "gru-200", "gru-nade")
    for key in ("hidden_size", "steps")
]
SMALL += ["model.variants.gru-nade.nade=2"]
SMALL_ON_PACKAGE = [*SMALL, "model.only=['lstm-36','gru-nade']"]


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def chain_rule(W, V, y, v):
    """log p(v | y), one note after the other, as the papers have it."""
    b, a, total = y[:K], np.asarray(y[K:], np.float64), 0.0
    for i in range(K):
        p = sigmoid(b[i] + V[i] @ sigmoid(a))
        total += np.log(p if v[i] else 1 - p)
        a = a + v[i] * W[i]
    return total


def test_nade_is_the_chain_rule_and_a_distribution():
    every = np.array(list(itertools.product([0, 1], repeat=K)), np.float32)
    W, V, ys = arrays((K, H), (K, H), (3, 2, K + H))
    density = nade(K, H, K)

    @jax.jit
    def said(params, ys):
        return density.cell.step(params, (), (ys[..., None, :], jnp.broadcast_to(every, (3, 2, *every.shape))))[1]

    log_probs = np.asarray(said(NADEParams(W, V), ys))  # (T, B, vectors)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)
    expected = [[[chain_rule(W, V, y, v) for v in every] for y in of_step] for of_step in ys]
    np.testing.assert_allclose(log_probs, expected, rtol=2e-5)  # float32


def test_a_step_with_more_notes_than_were_promised_has_no_probability(traced):
    W, V, y = arrays((K, H), (K, H), (K + H,))
    v = np.array([[1, 0, 1, 0], [1, 0, 1, 1]], np.float32)
    step = nade(K, H, 2).cell.step
    said = traced(lambda *params: step(NADEParams(*params), (), (np.broadcast_to(y, (2, K + H)), v))[1])(W, V)
    np.testing.assert_allclose(said[0], chain_rule(W, V, y, v[0]), rtol=2e-5)
    assert np.isnan(said[1])


@pytest.mark.parametrize("name", ["nade", "independent"])
def test_samples_come_as_often_as_they_are_likely(name):
    every = np.array(list(itertools.product([0, 1], repeat=K)), np.float32)
    W, V, y = arrays((K, H), (K, H), (K + H,))
    if name == "nade":
        density, params = nade(K, H, K), NADEParams(W, V)
        expected = np.exp([chain_rule(W, V, y, v) for v in every])
    else:
        density, params, y = independent(K), (), y[:K]
        expected = np.where(every > 0, sigmoid(y), 1 - sigmoid(y)).prod(-1)
    N = 20_000
    drawn = np.asarray(density.sample(params, jax.random.key(0), jnp.broadcast_to(y, (N, len(y)))))
    counts = np.bincount((drawn @ 2 ** np.arange(K)[::-1]).astype(int), minlength=2**K)
    assert abs(counts - N * expected).max() < 5 * np.sqrt(N * expected * (1 - expected)).max()
    assert ((counts - N * expected) ** 2 / (N * expected)).sum() < 50  # χ² with 15 degrees: one in 10^5 is above


def net(units, most=K, **options):
    options = {"dropout": 0.0, "noise": 0.0, **options}
    return model("gru", 2, np.zeros(K, np.float32), nade_units=units, most=most, dtype=None, **options)


def test_the_nll_is_that_of_all_steps_but_the_first_over_their_number(traced):
    of, (W, V) = net(H), arrays((K, H), (K, H))
    params = (of.init(jax.random.key(0))[0], NADEParams(W, V))
    rng = np.random.default_rng(1)
    xs, lengths = (rng.random((5, 3, K)) < 0.5).astype(np.float32), np.array([5, 1, 3])
    ask = traced(lambda params, xs: of.nll(params, xs, lengths, None))
    (cell, _, readout), _ = params
    total = 0.0
    for n, length in enumerate(lengths):
        h = np.zeros(2)
        for t in range(length - 1):
            h = gru(cell, h, xs[t, n])
            total -= chain_rule(W, V, h @ readout.W_hy + readout.b_y, xs[t + 1, n])
    np.testing.assert_allclose(ask(params, xs), total / 6, rtol=1e-5)
    ours = np.arange(5)[:, None] < lengths
    np.testing.assert_allclose(ask(params, np.where(ours[..., None], xs, 1 - xs)), total / 6, rtol=1e-5)


def gru(params, h, x):
    """One step of Cho et al. 2014, z the share of the candidate."""
    of_x, U = x @ params.W_xh + params.b, params.W_hh
    r, z = (sigmoid(of_x[n : n + 2] + h @ U[:, n : n + 2]) for n in (0, 2))
    return (1 - z) * h + z * np.tanh(of_x[4:] + (r * h) @ U[:, 4:])


@pytest.mark.full
def test_noise_is_drawn_by_the_key_alone_and_evaluation_has_none():
    of = net(H, noise=0.5, dropout=0.5)
    params, xs, lengths = of.init(jax.random.key(0)), np.ones((3, 2, K), np.float32), np.array([3, 3])
    train = jax.jit(lambda params, key: of.nll(params, xs, lengths, key))
    first, again, other = (float(train(params, jax.random.key(n))) for n in (0, 0, 1))
    assert first == again != other
    quiet = net(H)
    np.testing.assert_allclose(of.nll(params, xs, lengths, None), quiet.nll(params, xs, lengths, None), rtol=1e-6)


# ---- chorales ----------------------------------------------------------------------------------


def note(name="", quarters=1.0, *inside, divisions=4):
    """``"C4"``, ``"F♯3"``; no name is a rest."""
    alter = "<alter>1</alter>" if "♯" in name else ""
    pitch = f"<pitch><step>{name[0]}</step>{alter}<octave>{name[-1]}</octave></pitch>" if name else "<rest/>"
    return f"<note>{''.join(inside)}{pitch}<duration>{int(quarters * divisions)}</duration></note>"


def part(*measures, divisions=4):
    attributes = f"<attributes><divisions>{divisions}</divisions></attributes>"
    return "".join(f"<measure>{attributes if n == 0 else ''}{m}</measure>" for n, m in enumerate(measures))


def write_score(path, voices):
    """voices: the name and the measures of each part."""
    names = "".join(f'<score-part id="P{n}"><part-name>{v}</part-name></score-part>' for n, (v, _) in enumerate(voices))
    parts = "".join(f'<part id="P{n}">{of}</part>' for n, (_, of) in enumerate(voices))
    doctype = '<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML 3.0 Partwise//EN" "http://example/p.dtd">'
    container = '<container><rootfiles><rootfile full-path="inside.xml"/></rootfiles></container>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", container)
        archive.writestr(
            "inside.xml", f"{doctype}<score-partwise><part-list>{names}</part-list>{parts}</score-partwise>"
        )


def keys(roll):
    """The MIDI numbers of each step."""
    return [(21 + np.flatnonzero(step)).tolist() for step in roll]


def test_a_score_is_read_on_the_grid_of_its_quarters(tmp_path):
    upbeat = note("C5", 0.5)  # an eighth: the grid begins at the barline after it
    soprano = part(upbeat, note("D5", 2.5) + note("E5", 0.5) + note("F5"), note("G5", 4))
    alto = part(note("", 0.5), note("F♯4", 1, "<tie/>") + note("F♯4", 3), note("", 4))
    forward = "<forward><duration>6</duration></forward>"
    second = note("E4", 3, divisions=2) + forward.replace("forward", "backup") + forward + note("C4", 1, divisions=2)
    tenor = part(note("", 0.5, divisions=2), second, note("C4", 4, "<grace/>"), divisions=2)
    bass = part(note("C3", 0.5), note("C3", 2) + note("G3", 2, "<chord/>") + note("E3", 2), note("", 4))
    voices = [("Horn 1", part(note("C7", 9))), ("Soprano", soprano), (" Alto", alto), ("Tenor", tenor), ("Bass", bass)]
    write_score(tmp_path / "a.mxl", voices)
    roll = data.roll_of(data.score_of(tmp_path / "a.mxl"))
    # C3 and G3, then E3; E4, then C4; F♯4, struck twice; D5, F5 (E5 lies between two quarters); G5 alone
    steps = [[48, 55, 64, 66, 74]] * 2 + [[52, 64, 66, 74], [52, 60, 66, 77]] + [[79]] * 4
    assert keys(roll) == steps
    write_score(tmp_path / "b.mxl", voices[:4])
    assert data.roll_of(data.score_of(tmp_path / "b.mxl")) is None, "no bass"


@pytest.fixture
def music21(tmp_path, monkeypatch):
    """A package of that name with a few chorales, one of them twice, transposed, and a piece of another kind."""
    folder = tmp_path / "music21" / "corpus" / "bach"
    folder.mkdir(parents=True)
    (tmp_path / "music21" / "__init__.py").write_text("raise ImportError('only found, never imported')")
    rng = np.random.default_rng(0)
    for n in range(16):
        pieces = [[f"{'CDEFGAB'[p]}{octave}" for p in rng.integers(0, 7, 3 + n % 3)] for octave in (5, 4, 4, 3)]
        up = [[f"{p[0]}{int(p[1]) + 1}" for p in piece] for piece in pieces]
        names = (*data.VOICES[:3], "Bass" if n else "Organ")
        for file, of in [(f"bwv{n}", pieces), ("bwv5-a", up)][: 2 if n == 5 else 1]:
            parts = [part("".join(map(note, piece))) for piece in of]
            write_score(folder / f"{file}.mxl", list(zip(names, parts, strict=True)))
    monkeypatch.syspath_prepend(tmp_path)
    source._read.cache_clear()
    yield
    source._read.cache_clear()


def test_chorales_come_once_each_with_their_four_voices(music21):
    found = {record.id: record.x for record in data.chorales().records}
    assert sorted(found) == sorted({"bwv5-a", *(f"bwv{n}" for n in range(1, 16) if n != 5)})  # by name: -a is earlier
    assert {x.shape for x in found.values()} == {(3, 88), (4, 88), (5, 88)}


def run(out, *settings):
    options = [option for setting in [*SMALL, *settings] for option in ("--set", setting)]
    return main(["run", str(ROOT / "configs/music.toml"), "--out", str(out), *options])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "data.path: music21, whose chorales the experiment reads, is not installed; pip install 'jaxrnn[music]'"),
        (["data.path=walk.csv"], "data.path: walk.csv: holds no piano rolls; give a .mat file with traindata"),
        (["model.only=['gru-47']"], "--set: model.only: 'gru-47' is no variant; did you mean 'gru-46'?"),
        (["model.variants.gru-46.noize=1"], "--set: model.variants.gru-46.noize: unknown key; did you mean 'noise'?"),
    ],
    ids=["no package", "no rolls", "no variant", "no key"],
)
def test_what_is_refused_leaves_no_run(settings, said, tmp_path, monkeypatch, capsys):
    without = ("music21", "mido")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *at: name not in without and find(name, *at))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walk.csv").write_text("sequence,a\n" + "".join(f"{n},{n % 2}\n" for n in range(9)))
    source._read.cache_clear()
    assert run(tmp_path / "runs", *settings) == 2
    assert capsys.readouterr().err.startswith(said)
    assert not (tmp_path / "runs").exists()


@pytest.mark.full
def test_a_tiny_run_reads_the_test_split_once_and_composes(music21, tmp_path, capsys):
    assert run(tmp_path / "runs", "model.only=['lstm-36','gru-nade']") == 0
    directory = tmp_path / "runs/music-001"
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["test_reads"] == 1 and [of["model"] for of in summary["models"]] == ["lstm-36", "gru-nade"]
    for of in summary["models"]:
        low, high = summary["interval"][of["model"]]["test_nll"]
        assert 0 < low < of["test_nll"]["mean"] < high and of["test_nll"]["sd"] > 0
    assert "of the package music21" in (directory / "table.md").read_text()
    assert "gru-nade composes" in (directory / "report.html").read_text()
    asked = ["--model", "gru-nade", "--seed", "1"]
    assert main(["predict", str(directory), *asked, "--count", "2"]) == 0
    assert "nats a step" in capsys.readouterr().out
    assert main(["compose", str(directory), *asked, "--output", str(tmp_path / "a.txt")]) == 2
    assert "expected the name of a MIDI file" in capsys.readouterr().err
    if importlib.util.find_spec("mido"):
        assert main(["compose", str(directory), *asked, "--steps", "5", "--output", str(tmp_path / "a.mid")]) == 0
        assert (tmp_path / "a.mid").read_bytes()[:4] == b"MThd" and (tmp_path / "a.png").exists()


@pytest.mark.full
def test_settings_are_chosen_without_the_test_split(music21, tmp_path, monkeypatch):
    monkeypatch.setattr(source.Splits, "test", None)
    assert run(tmp_path / "runs", "model.only=['gru-46']", "task.held_out=validation") == 0
    assert "The test split was not read." in (tmp_path / "runs/music-001/table.md").read_text()


# ---- what is composed --------------------------------------------------------------------------

ROLL = np.zeros((3, 88), np.float32)
ROLL[0, 39] = ROLL[1, 39] = ROLL[1, 43] = ROLL[2, 46] = 1  # C4 for two steps, E4 in the second, then G4


def test_notes_that_go_on_are_one_note():
    assert list(composing.held(ROLL)) == [
        (0, 39, True), (1, 43, True), (2, 39, False), (2, 43, False), (2, 46, True), (3, 46, False),
    ]  # fmt: skip
    assert [composing.name_of(key) for key in (0, 39, 87)] == ["A0", "C4", "C8"]
    sample = composing.sample("a", ROLL, note="", file="")
    assert sample.rows[0] == "G4" and sample.rows[-1] == "C4"
    assert sample.values[0] == (0, 0, 1) and sample.values[-1] == (1, 1, 0)


def test_a_midi_file_holds_the_notes(tmp_path):
    mido = pytest.importorskip("mido")
    composing.write_midi(tmp_path / "a.mid", ROLL)
    now, heard = 0.0, []
    for message in mido.MidiFile(tmp_path / "a.mid"):  # times in seconds
        now += message.time
        if message.type.startswith("note"):
            heard.append((round(now * composing.TEMPO / 60), message.note, message.type == "note_on"))
    assert heard == [(step, 21 + key, begins) for step, key, begins in composing.held(ROLL)]


def test_what_is_composed_begins_as_it_is_told_and_goes_on_by_the_model():
    of = net(H)
    params = of.init(jax.random.key(0))
    # Notes that are certain: the two lower ones sound, the others do not.
    (cell, nothing, readout), of_nade = params
    readout = readout._replace(b_y=jnp.array([50.0, 50, -50, -50, 0, 0, 0]))
    first = jnp.array([0.0, 0, 1, 1])
    roll = of.compose(((cell, nothing, readout), of_nade), first, jax.random.key(1), 3)
    assert roll.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
