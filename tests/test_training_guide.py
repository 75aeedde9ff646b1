"""docs/training.md runs from top to bottom, and does what it says."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrnn.training import checkpoints

pytestmark = pytest.mark.usefixtures("quick_to_compile")
GUIDE = Path(__file__).parents[1] / "docs" / "training.md"


def test_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    seen = {}
    for section in re.split(r"^## ", GUIDE.read_text(), flags=re.M)[1:]:
        title = section.split("\n")[0]
        for block in re.findall(r"^```python\n(.*?)^```", section, re.M | re.S):
            exec(compile(block, str(GUIDE), "exec"), names)
        seen[title] = names.get("fitted")
    first, again = seen["Blocks that lose nothing"], names["again"]
    losses = [point.values["loss"] for point in first.points]
    assert len(losses) == 10 and losses[-1] < losses[0] / 5
    jax.tree.map(np.testing.assert_array_equal, again.state.params, first.state.params)
    assert again.seconds == checkpoints.note(tmp_path / "waves/checkpoints")["seconds"]
    assert (tmp_path / "waves/metrics.jsonl").read_text().count("\n") == 10

    by_length = [point.values["loss"] for point in seen["Sequences of many lengths"].points]
    assert len(by_length) == 4 and by_length[-1] < by_length[0] / 2
    assert names["batches"].padding < 0.4 and len(names["batches"].shapes) == 2
    assert names["losses"].shape == (4,) and np.isfinite(names["losses"]).all()

    x = np.array([0.1, 0.2, 0.3], np.float32)
    alone = names["model"].apply(names["state"].params, x[None])[1][0]
    # Another program: float32 rounding.
    np.testing.assert_allclose(names["y"][names["slots"]["ann"]], alone, rtol=1e-5, atol=1e-6)
    assert not names["y"][1:].any()
