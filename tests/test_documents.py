"""The pages of docs/ run from top to bottom, and do what they say."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from experiments.markdown import parts_of
from jaxrnn.training import checkpoints
from tests.documents import ROOT, pages, run, sections

# float32, a few tens of operations a step in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_page_with_blocks_is_run():
    tested = {
        "CONTRIBUTING.md",  # in tests/test_contributing.py
        *("README.md", "docs/conventions.md", "docs/gradients.md", "docs/migrating.md", "docs/plans.md"),
        *("docs/parallel_over_time.md", "docs/persistent_kernels.md", "docs/reinforcement_learning.md"),
        *(
            "docs/attention.md",
            "docs/closed_loop.md",
            "docs/training.md",
            "docs/own_data.md",
            "docs/learning_online.md",
        ),
    }
    others = {page for page in pages() if not page.startswith("docs/api/")}  # those: tests/test_api_pages.py
    assert others == tested, "run the page in a test, with values that matter, and name it here"


def test_links_lead_somewhere():
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for file in files:
        prose = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        prose = re.sub(r"`[^`\n]*`", "", prose)
        for link in re.findall(r"\]\(([^)#\s]+)", prose):
            if "://" not in link:
                assert (file.parent / link).exists(), f"{file.relative_to(ROOT)} links to {link}, which is not there"


def test_the_walk_names_what_is_there():
    walk = re.findall(
        r"^\d+\. `(.+?)`, `(\w+)`: ", (ROOT / "docs" / "plans.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(walk) > 10
    for file, name in walk:
        defined = re.search(rf"^(def|class) {name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert defined, f"docs/plans.md: {file} does not define {name}"


@pytest.mark.parametrize("page", [*(ROOT / "docs" / "results").glob("[!i]*.md"), ROOT / "docs" / "parity.md"], ids=str)
def test_what_was_measured_stands_between_markers(page):
    assert parts_of(page, [page.stem]) == [page.stem]
    outside = re.sub(r"^<!-- ([\w-]+):begin.*?^<!-- \1:end -->$", "", page.read_text("utf-8"), flags=re.M | re.S)
    measured = r"\d ± \d|\d → \d|\| [\d.]+ (ms |µs |s )?\|"
    assert not re.search(rf"^\| .*({measured})", outside, re.M), "a measured table outside of markers"


def test_conventions():
    names = run("docs/conventions.md")
    np.testing.assert_allclose(names["by_hand"], names["gates"].c, **CLOSE)
    np.testing.assert_allclose(names["h_by_hand"], names["gates"].h, **CLOSE)
    np.testing.assert_allclose(names["in_parallel"], names["step_by_step"], **CLOSE)
    ys = names["ys"]
    np.testing.assert_allclose(ys[3:, 0], names["alone"], **CLOSE)
    assert not ys[4:, 1].any() and jnp.isfinite(ys).all()
    assert all(jnp.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(names["gradient"]))
    np.testing.assert_allclose(names["of_padded"][:4, 1], names["of_short"], **CLOSE)
    whole = names["layer"].apply(names["params"], names["xs"], lengths=names["lengths"])[1]
    np.testing.assert_allclose(jnp.concatenate([names["ys_first"], names["ys_rest"]]), whole, **CLOSE)


@pytest.mark.full
def test_gradients(capsys):
    pytest.importorskip("matplotlib")
    names = run("docs/gradients.md")
    said = "vanishing: leading Lyapunov exponent -0.149"  # what the page prints
    assert capsys.readouterr().out.startswith(said)
    assert names["flow"].states.c.mean.shape == (100,) and names["flow"].states.c.mean[0] < 1e-3
    assert names["spectrum"].exponents.shape == (2, 4) and names["products"].shape == (10, 2, 16)
    assert 0 < float(names["radius"]) < 1
    assert bool(names["around"].stable.all()) and len(names["figure"].axes) == 1
    assert bool(jnp.abs(names["gradient"].W_hh).max() > 0)


def test_plans():
    names = run("docs/plans.md")
    xs, params = names["xs"], names["params"]
    (scan,) = names["explanation"].scans
    assert len(scan.saved) == 4  # of an LSTM c, h, g, and in one array i, f and o
    expected = names["plain"].apply(params, xs)[1]
    for name in ("layer", "by_hand", "long", "fitted", "truncated"):
        np.testing.assert_allclose(names[name].apply(params, xs)[1], expected, **CLOSE)
    gradient = jax.grad(lambda params: (names["plain"].apply(params, xs)[1] ** 2).sum())(params)
    for ours, theirs in zip(jax.tree.leaves(names["gradient"]), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)  # sums over 42 steps and rows
    assert names["gradients"].W_hh.shape == (4, 8, 32) and names["gradients"].W_hh.any()


@pytest.mark.full
def test_parallel_over_time(capsys):
    names = run("docs/parallel_over_time.md")
    said = capsys.readouterr().out.splitlines()  # as the page's comments have it
    assert all(line.startswith("parallel(gru), ") and ": 1 sweeps after a warm-up of " in line for line in said[:2])
    assert names["report"].method == "chunks" and names["report"].fell_back == 0
    (contracting,) = [line for line in said if line.startswith("contracting: leading Lyapunov exponent -0.36")]
    (chaotic,) = [line for line in said if line.startswith("chaotic: leading Lyapunov exponent +0.")]
    assert "about 44 steps" in contracting and 0.2 < float(chaotic.split()[4]) < 0.4
    assert names["of_xs"].sharding.spec[0] == "time" and names["of_xs"].shape == (2048, 3)
    assert names["w"] == 44 and names["moves"] < 1e-6
    for got, want in (("in_parallel", "one_by_one"), ("in_chunks", "sequential"), ("states", "stepped")):
        np.testing.assert_allclose(names[got], names[want], **CLOSE)
    assert names["residual"] < 1e-5 < 1.5 < names["error"]


@pytest.mark.full
def test_attention():
    names = run("docs/attention.md")
    assert names["context"].shape == (7, 2, 6) and not names["weights"][:, 1, 4:].any()
    np.testing.assert_allclose(names["weights"].sum(-1), 1, **CLOSE)
    assert names["pooled"].shape == (2, 6)
    stepped = names["step_by_step"](names["params"], names["source"], names["lengths"], names["target"])
    np.testing.assert_allclose(names["logits"], stepped, **CLOSE)
    assert names["ys"].shape == (2, 3, 16) and names["looked"].shape == (5, 2, 9)
    np.testing.assert_allclose(names["looked"].sum(-1), 1, **CLOSE)
    assert (names["found"].weights.argmax(-1) == 3).all()


def test_persistent_kernels():
    names = run("docs/persistent_kernels.md")
    (scan,) = names["explanation"].scans
    assert scan.persistent == ["forward", "backward"] or "needs JAX 0.12" in scan.not_persistent[0]
    carry, ys = jr.scan(jr.lstm(16, 64, dtype="bfloat16"), plan="plain").apply(names["params"], names["xs"])
    for got, want in zip(jax.tree.leaves((names["carry"], names["ys"])), jax.tree.leaves((carry, ys)), strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), rtol=0, atol=2**-8)  # bfloat16


@pytest.mark.full
def test_reinforcement_learning():
    names = run("docs/reinforcement_learning.md")
    assert names["first"]["dones"].any() and not names["rollout"]["resets"][0].all()
    assert names["apart"] < 1e-5 and names["replayed"].shape == (10, 8)
    _, logits, values = names["replay"](names["params"], names["rollout"])
    np.testing.assert_allclose(names["logits"], logits[4:], **CLOSE)
    np.testing.assert_allclose(names["values"][..., 0], values[4:], **CLOSE)
    assert np.mean(names["rewards"][:5]) < 0.6 and np.mean(names["rewards"][-5:]) > 0.95


@pytest.mark.full
def test_learning_online():
    names = run("docs/learning_online.md")
    flat = lambda grads: np.concatenate([np.ravel(a) for a in jax.tree.leaves(grads)])
    np.testing.assert_allclose(flat(names["online"]), flat(names["whole"]), rtol=1e-4, atol=1e-4)  # float32
    of_gru = sum(a.size for a in jax.tree.leaves(names["params"][0]))
    assert names["kept"] == 8 * of_gru
    of_lstm = (3 + 8 + 1) * 32
    assert names["sizes"] == {"rtrl": 16 * of_lstm, "snap1": 7 * of_lstm // 4, "diagonal": (3 + 1) * 16}
    assert names["found"].rules == tuple(names["rules"]) and len(names["figure"].axes) == 2
    norm = names["found"].by_lag.norm
    np.testing.assert_allclose(norm[:2, 0], 1, rtol=1e-4)
    np.testing.assert_allclose(norm[4], [1, 1, 1, 0, 0, 0], rtol=1e-4, atol=1e-4)
    assert (names["found"].whole.deviation > 1e-2).tolist() == [False, False, True, True, False]
    assert names["layers_size"] == 2 * 16 * (8 + 1) - 16 * 5 < names["whole_size"]
    assert np.isfinite(flat(names["aligned"])).all() and flat(names["aligned"]).any()
    assert names["sparse_size"] < names["dense_size"] == 8 * (3 + 8 + 1) * 8
    assert not names["y"][1].any() and names["y"][0].any()
    trace = jax.tree.leaves(names["after"].trace)
    assert any(a[0].any() for a in trace) and not any(a[1].any() for a in trace)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), names["learned"], names["params"])
    assert any(jax.tree.leaves(moved))
    assert names["skipped"] == [0, 1, 0]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), names["held"], names["resumed"])
    assert all(jax.tree.leaves(same)) and int(names["resumed"][2].time) == 3
    assert names["filtered_size"] == 2 * (3 + 8 + 1) * 8
    assert np.isfinite(flat(names["faded"])).all() and np.abs(flat(names["faded"]) - flat(names["online"])).max() > 1e-3
    whole, _ = names["gradients"](names["decayed"](1.0))
    np.testing.assert_allclose(flat(whole), flat(names["online"]), rtol=1e-4, atol=1e-4)  # float32


@pytest.mark.full
def test_closed_loop():
    names = run("docs/closed_loop.md")
    counted = names["said"]
    assert names["losses"][-1] < 0.05 and counted.lengths.tolist() == [1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(counted.tokens[:7], names["tokens"])
    assert (names["drawn"].sampler_log_probs >= names["drawn"].log_probs).all()
    assert names["rest"].tokens[:4].T.tolist() == [[3, 2, 1, 0], [0, 0, 0, 0], [3, 2, 1, 0]]
    assert jnp.isfinite(names["error"]) and all(leaf.any() for leaf in jax.tree.leaves(names["gradient"]))
    np.testing.assert_allclose(names["forced"], names["loss"](names["params"]), **CLOSE)
    assert names["half"] < 0.5 and all(leaf.any() for leaf in jax.tree.leaves(names["gradient_of_half"]))
    np.testing.assert_array_equal(names["found"].tokens[:7, :, 0], names["tokens"])
    np.testing.assert_allclose(names["by_mean"].scores[:, 0] * names["lengths"], counted.log_probs.sum(0), **CLOSE)
    assert names["ctc"].shape == (3,) and (names["beam"].log_probs >= names["greedy"].log_probs).all()


def test_own_data():
    names = run("docs/own_data.md")
    data, batch = names["data"], names["batch"]
    assert sum(data.sizes.values()) == 60 and min(data.sizes.values()) > 3 and data.classes == ("even", "odd")
    assert batch.xs.shape[0] == 3 and batch.xs.shape[2:] == (8, 2) and batch.labels.shape == (3, 8)
    lengths = {f"s{n}": 3 + n % 4 for n in range(60)}
    assert names["held_out"].lengths.tolist() == [lengths[name] for name in data.validation.ids]
    assert len(names["test"].ids) == data.sizes["test"] and data.test_reads == 1
    assert names["said"].startswith("the test split was read already: ")


@pytest.mark.full
def test_training(tmp_path):
    seen = {}
    for title, _, names in sections("docs/training.md"):
        seen[title] = names.get("fitted")
    first, again = seen["Blocks that lose nothing"], names["again"]
    losses = [result.values["loss"] for result in first.history]
    assert len(losses) == 10 and losses[-1] < losses[0] / 5
    jax.tree.map(np.testing.assert_array_equal, again.state.params, first.state.params)
    assert again.seconds == checkpoints.note(tmp_path / "waves/checkpoints")["seconds"]
    assert (tmp_path / "waves/metrics.jsonl").read_text().count("\n") == 10

    by_length = [result.values["loss"] for result in seen["Sequences of many lengths"].history]
    assert len(by_length) == 4 and by_length[-1] < by_length[0] / 2
    assert names["batches"].padding < 0.4 and len(names["batches"].shapes) == 2
    assert names["losses"].shape == (4,) and np.isfinite(names["losses"]).all()

    x = np.array([0.1, 0.2, 0.3], np.float32)
    alone = names["model"].apply(names["state"].params, x[None])[1][0]
    np.testing.assert_allclose(names["y"][names["slots"]["ann"]], alone, **CLOSE)
    assert not names["y"][1:].any()
