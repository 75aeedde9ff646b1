"""What a run leaves behind: a directory of its own, and the part of the page between its markers.

runs/gpu-001/
  rows.jsonl   a line for each contestant of each group, written as measured
  table.md     all of it as Markdown, written anew after every group: a run that is stopped leaves what it has
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments import markdown
from experiments.benchmarks.report import by_shape, milliseconds, notes
from experiments.benchmarks.suites import Row
from experiments.environment import environment, sentence
from experiments.gpu.contract import ALLOWED, Outcome

PART = "gpu"  # the name of the markers
PACKAGES = ("jax", "jaxlib", "numpy", "torch")
PRODUCTS = {"highest": "float32 (TF32 off)", "default": "JAX's default (TF32 on)"}
QUANTITIES = {"train": "Training step, ms", "forward": "Forward, ms"}


class Findings(NamedTuple):
    """What is known so far."""

    machine: str
    doctor: int  # its exit status
    outcomes: list[Outcome]
    rows: list[Row]

    @property
    def wrong(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.wrong]


def machine() -> str:
    """The GPU, the versions, and those of CUDA that JAX and torch use."""
    words = [sentence(environment(PACKAGES), PACKAGES)]
    device = jax.devices()[0]
    platform = " ".join(str(device.client.platform_version).split())
    words.append(f"{device.device_kind}, one of {jax.device_count()}; JAX: {platform}.")
    try:  # after JAX has begun: of two libraries with a cuDNN each the first one's is loaded (jax-ml/jax#19004)
        import torch
    except Exception:  # absent, or unable to load its libraries: the benchmark says so
        return " ".join(words)
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else "missing"
    return " ".join([*words, f"torch: CUDA {torch.version.cuda or 'missing'}, cuDNN {cudnn}."])


def write(directory: Path, found: Findings, page: Path | None = None) -> str:
    """table.md, and the same between the markers of the page; returns it."""
    text = "\n\n".join(paragraphs(found)) + "\n"
    (directory / "table.md").write_text(text, encoding="utf-8")
    if page is not None:
        markdown.write_parts(page, {PART: text})
    return text


def paragraphs(found: Findings) -> list[str]:
    parts = [
        found.machine,
        "The doctor: " + ("nothing is wrong." if found.doctor == 0 else "**something is wrong**, as it printed."),
        "**The contract's cases, float32 on the GPU beside float64 loops on the CPU**",
        markdown.table(contract_table(found.outcomes)),
    ]
    parts += [wrong(outcome) for outcome in found.wrong]
    for quantity, heading in QUANTITIES.items():
        lines = by_shape([row for row in found.rows if row.quantity == quantity], milliseconds)
        if len(lines) > 1:
            parts += [f"**{heading}**", markdown.table(lines)]
    return parts + (notes(found.rows) if found.rows else [])


def contract_table(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """A line for each setting of the products."""
    lines: list[tuple[str, ...]] = [("products", "right", "skipped", "value", "gradient", "allowed")]
    for precision, allowed in ALLOWED.items():
        chosen = [outcome for outcome in outcomes if outcome.precision == precision]
        compared = [outcome for outcome in chosen if not outcome.note]
        done = [outcome for outcome in chosen if not outcome.skipped]
        pairs = [(outcome.value, outcome.gradient) for outcome in compared]
        furthest = np.max(pairs, axis=0) if pairs else (None, None)  # NaN where any is
        lines.append(
            (
                PRODUCTS[precision],
                f"{sum(outcome.ok for outcome in done)} of {len(done)}",
                str(len(chosen) - len(done)),
                *("–" if figure is None else f"{figure:.1e}" for figure in furthest),
                f"{allowed:.1e}",
            )
        )
    return lines


def wrong(outcome: Outcome) -> str:
    """An outcome that is not as it should be, as a line."""
    where = f"**{outcome.case}, {outcome.flags}, products {outcome.precision}**"
    said = outcome.note or f"value {outcome.value:.1e}, gradient {outcome.gradient:.1e}"
    return f"{where}: {said}; allowed {ALLOWED[outcome.precision]:.1e}."
