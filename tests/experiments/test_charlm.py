"""The character model: its n-gram by hand, its text, readers that go on where they stopped, and the carry they keep."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as jr
from experiments import charlm
from experiments.charlm import data
from experiments.charlm.ngram import KneserNey
from experiments.data import splits
from experiments.reports import samples
from experiments.runner.command import main
from experiments.runner.training import run_with_carry
from jaxrnn import training
from tests.cases import randomised
from tests.documents import ROOT
from tests.experiments import tiny

TEXT = "the cat sat on the mat, and the hat sat on the cat. " * 12
SMALL = ["train.steps=6", "train.log_every=2", "train.seeds=[5,3]", "train.batch_size=2", "train.save_every=1"]
SMALL += ["model.hidden_size=3", "model.embedding_size=2", "task.window=4", "task.lead=3", "task.streams=2"]
SMALL += ["task.order=3", "task.written=8", "task.prompt=6"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def config(path, **task):
    return charlm.Config.model_validate(
        {
            "experiment": "charlm",
            "data": {"path": str(path)},
            "model": {"hidden_size": 3, "embedding_size": 2, "dropout": 0.0},
            "train": {"batch_size": 2, "steps": 2, "log_every": 1},
            "task": {"window": 4, "lead": 3, "streams": 2, "prompt": 6, **task},
        }
    )


def test_kneser_ney_by_hand():
    """aa ab ba ab bc: D₂ = 3 / (3 + 2); a is preceded by a and b, b by a, c by b: D₁ = 2 / (2 + 2)."""
    model = KneserNey("aababc", 2, "abc")
    assert [of.discount for of in model.orders] == [0.5, 0.6]
    of_one = {"a": 1.5 / 4 + 0.5 * 3 / 4 / 3, "b": 0.5 / 4 + 0.5 * 3 / 4 / 3, "c": 0.5 / 4 + 0.5 * 3 / 4 / 3}
    assert of_one == {"a": 0.5, "b": 0.25, "c": 0.25}
    by_hand = {
        "": of_one,
        "c": of_one,  # it was never followed
        "a": {"a": 0.4 / 3 + 1.2 / 3 * 0.5, "b": 1.4 / 3 + 1.2 / 3 * 0.25, "c": 1.2 / 3 * 0.25},
        "b": {"a": 0.4 / 2 + 1.2 / 2 * 0.5, "b": 1.2 / 2 * 0.25, "c": 0.4 / 2 + 1.2 / 2 * 0.25},
    }
    for context, expected in by_hand.items():
        assert {w: model.probability(context, w) for w in "abc"} == pytest.approx(expected, abs=1e-12)
    bits = -np.log2([by_hand["a"]["b"], by_hand["b"]["c"]]).mean()
    assert model.bits("bc", before="cca") == pytest.approx(bits)
    assert model.parameters == 3 + 4


def by_definition(text, order, alphabet, context, w):
    """The formula with every count taken anew from the text."""

    def occurs(gram):
        return sum(text.startswith(gram, t) for t in range(len(text)))

    def c(gram, highest):
        return occurs(gram) if highest else sum(occurs(v + gram) > 0 for v in alphabet)

    def p(k, highest=False):
        if k == 0:
            return 1 / len(alphabet)
        if k - 1 > len(context):
            return p(k - 1)
        h = context[len(context) - k + 1 :]
        total = sum(c(h + v, highest) for v in alphabet)
        if not total:
            return p(k - 1)
        grams = {text[t : t + k] for t in range(len(text) - k + 1)}
        counted = [c(gram, highest) for gram in grams]
        once, twice = counted.count(1), counted.count(2)
        D = once / (once + 2 * twice) if once and twice else 0.5
        kinds = sum(c(h + v, highest) > 0 for v in alphabet)
        return (max(c(h + w, highest) - D, 0) + D * kinds * p(k - 1)) / total

    return p(order, highest=True)


def test_kneser_ney_is_its_definition_and_sums_to_one():
    text, alphabet = "abracadabra, a cadabra; abra", "abcdr,; x"  # x is never seen
    model = KneserNey(text, 4, alphabet)
    for context in ("", "a", "br", "abr", "aca", "xyz", "xa", "; abra", "a a"):
        context = context[-3:]
        each = [model.probability(context, w) for w in alphabet]
        assert sum(each) == pytest.approx(1, abs=1e-12) and min(each) > 0
        np.testing.assert_allclose(each, [by_definition(text, 4, alphabet, context, w) for w in alphabet], rtol=1e-12)
    assert set(model.generate("abr", 40, 0.5, 0)) <= set(alphabet)
    with pytest.raises(ValueError, match="the text has 'z', which is not in the alphabet"):
        KneserNey("z", 2, "ab")


def test_a_text_is_cut_in_order_and_its_test_is_read_once(text):
    of = config(text)
    texts = of.texts
    assert texts.train + texts.validation + texts._test == TEXT
    assert texts.sizes == {"train": 499, "validation": 63, "test": 62} and texts.test_reads == 0
    assert of.texts is texts and texts.test() == TEXT[-62:]
    with pytest.raises(splits.TestSplitError, match="handed to the final evaluation, once"):
        texts.test()
    assert len(of.data.sha256) == 64


def test_rare_characters_are_one_symbol():
    alphabet = data.alphabet("aabbcx", 2)
    assert alphabet.characters == "ab" + data.OTHER
    assert alphabet.plain("abcz") == "ab" + 2 * data.OTHER
    assert alphabet.encode("abcz").tolist() == [0, 1, 2, 2]
    assert alphabet.decode(alphabet.encode("abc")) == "ab" + data.OTHER


def test_the_topics_of_this_python_have_each_paragraph_once():
    text = data.topics()
    paragraphs = text.rstrip("\n").split("\n\n")
    assert len(paragraphs) == len(set(paragraphs)) > 1000 and "\n\n\n" not in text
    assert 'The "assert" statement\n**********************\n\nAssert statements' in text


def test_readers_go_round_and_round():
    N, B, T = 11, 2, 3
    text = jnp.arange(N) * 10
    windows = [data.window(text, B, T, jnp.int32(n), jnp.int32(4)) for n in range(9)]
    read = np.concatenate([window.xs for window in windows])
    for b, first in enumerate((4, 9)):
        np.testing.assert_array_equal(read[:, b], 10 * ((first + np.arange(27)) % N))
    np.testing.assert_array_equal(np.concatenate([window.ys for window in windows])[:-1], read[1:])
    np.testing.assert_array_equal(np.concatenate([window.resets for window in windows]), read == 0)
    np.testing.assert_array_equal(np.concatenate([window.scored for window in windows]), read != 10 * (N - 1))


@pytest.mark.parametrize("count", [1, 3])
def test_every_held_out_character_is_scored_once_after_what_stands_before_it(count):
    before, text, lead = np.arange(20), np.arange(20, 30), 4
    window = data.streams(before, text, count, lead)
    assert window.xs.shape == (lead + -(-10 // count), count) and not window.resets.any()
    scored = np.sort(window.ys[window.scored])
    np.testing.assert_array_equal(scored, text)
    np.testing.assert_array_equal(window.xs[window.scored], window.ys[window.scored] - 1)
    np.testing.assert_array_equal(window.xs[0], window.ys[window.scored.argmax(0), range(count)] - lead - 1)


def test_a_kept_carry_is_truncated_bptt(text):
    """Batches that follow each other, the parameters held still: values and gradient of jr.tbptt on them all."""
    of = config(text)
    task, T, K = charlm.task(of, "lstm"), 4, 3
    params = randomised(task.init(jax.random.key(0)), 1)
    windows = [data.window(task.shared[0], 2, T, jnp.int32(n), jnp.int32(490)) for n in range(K)]  # over the end
    step = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    carry, losses, gradients = task.initial_carry(params), [], []
    for window in windows:
        (loss, measures), gradient = step(params, (window, carry), None, None)
        carry = measures["carry"]
        losses.append(loss)
        gradients.append(gradient)
    whole = jax.tree.map(lambda *a: jnp.concatenate(a), *windows)
    assert whole.resets.any()

    def truncated(params):
        layer = jr.tbptt(charlm.network(of, "lstm"), window=T)
        logits = layer.apply(params, whole.xs, resets=whole.resets)[1]
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, whole.ys)
        blocks, on = (a.reshape(K, -1) for a in (nats, whole.scored))
        return sum(block.mean(where=scored) for block, scored in zip(blocks, on, strict=True)) / np.log(2)

    expected, gradient = jax.jit(jax.value_and_grad(truncated))(params)
    np.testing.assert_allclose(sum(losses), expected, rtol=1e-5)  # float32
    added = jax.tree.map(lambda *a: sum(a), *gradients)
    for a, b in zip(jax.tree.leaves(added), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_runner_hands_the_carry_on():
    """The carry adds up the batches 0, 1, 2 …; a step that is skipped leaves it as it was."""

    def loss(w, batch_and_carry, key):
        batch, carry = batch_and_carry
        return (w * jnp.where(batch == 2, jnp.nan, 1.0)) ** 2, {"carry": carry + batch, "before": carry}

    for nonfinite, expected in (("keep", [0, 0, 1, 3, 6]), ("skip", [0, 0, 1, 1, 4])):
        loop = training.loop(lambda key: jnp.ones(()), loss, optax.sgd(0.1), nonfinite=nonfinite)
        run = jax.jit(lambda state, loop=loop: run_with_carry(loop, state, jnp.int32(0), lambda key, n: n, 5))
        state, carry, measures = run(loop.init(jax.random.key(0)))
        assert measures["before"].tolist() == expected and carry == expected[-1] + 4 and state.step == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; did you mean '{folder}/text.txt'?; give its path from the current directory"),
        (b"caf\xe9 au lait", "byte 4: is not UTF-8 (invalid continuation byte); convert the file, as by iconv"),
        (b"too short", "the text is too short: 7 characters to learn from, 1 for validation and 1 for the test"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(content, message, text, tmp_path, capsys):
    path = text.with_name("texd.txt" if content is None else "other.txt")
    if content is not None:
        path.write_bytes(content)
    options = tiny.options(*SMALL, f"data.path={path}")
    assert main(["run", str(ROOT / "configs/charlm.toml"), "--out", str(tmp_path / "runs"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.path: " in line and message.format(folder=tmp_path) in line
    assert not (tmp_path / "runs").exists()


def test_a_folder_and_a_text_that_has_changed_are_refused(text, tmp_path):
    with pytest.raises(ValueError, match="is a folder; name a text file in it"):
        config(tmp_path)
    begun = config(text).model_dump()
    text.write_text(TEXT + "more", encoding="utf-8")
    charlm.read.cache_clear()
    with pytest.raises(ValueError, match=r"is not that of the run: it was .* put the old one back"):
        charlm.Config.model_validate(begun)


@pytest.mark.full
def test_a_tiny_run_its_resumption_its_report_and_a_question(text, tmp_path, capsys):
    options = tiny.options(*SMALL, f"data.path={text}")
    run = tmp_path / "runs" / "charlm-001"
    with tiny.copied(run, ("lstm", 4)) as copies:
        assert main(["run", str(ROOT / "configs/charlm.toml"), "--out", str(run.parent), *options]) == 0
    lstm, ngram = json.loads((run / "summary.json").read_text())["models"]
    assert ngram["model"] == "3-gram" and len(lstm["test_bits"]["each"]) == 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = [min(line["validation_bits"] for line in lines if line["seed"] == seed) for seed in (5, 3)]
    assert lstm["validation_bits"]["each"] == best
    assert json.loads((run / "summary.json").read_text())["test_reads"] == 1
    (said,) = samples.read(run)
    assert len(said.rows) == 1 + 2 * 3 and all(len(row[2]) == 8 for row in said.rows[1:])
    assert "the test text was read once" in (run / "table.md").read_text()
    assert main(["run", "--resume", str(copies[0])]) == 0
    assert (copies[0] / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    again = json.loads((copies[0] / "summary.json").read_text())["models"][0]
    assert again["test_bits"] == lstm["test_bits"]
    capsys.readouterr()
    assert main(["predict", str(run), "--count", "2"]) == 0
    assert "; it was '" in capsys.readouterr().out
