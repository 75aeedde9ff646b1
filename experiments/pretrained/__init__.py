"""Other people's networks, run here: the LSTM of silero-vad and the GRUs of g2p-en, equal to their own runtimes.

About 1 minute on 2 CPU cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, PrivateAttr, field_validator
from rich.console import Console

from experiments.data.files import digest
from experiments.environment import environment
from experiments.pretrained import explaining, files, g2p_en, showing, silero, sounds, speed
from experiments.pretrained.explaining import Point, Points, Saliency
from experiments.pretrained.g2p_en import G2P
from experiments.pretrained.silero import Silero, Theirs
from experiments.pretrained.speed import Timed
from experiments.reports import figures, samples
from experiments.runner import report
from experiments.runner.config import Many, Rate, Seed, Table

PACKAGES = (*report.PACKAGES, "onnxruntime", "silero-vad", "g2p-en")


class Files(Table):
    silero: str = ""  # an ONNX file; "": the sequence form in the package silero-vad
    g2p_en: str = ""  # a .npz, g2p.py beside it; "": that of the package g2p-en


class Sound(Table):
    seconds: Rate = 16.384  # 512 frames
    seed: Seed = 0


class Networks(NamedTuple):
    """What the files hold."""

    vad: Silero
    g2p: G2P
    package: Any  # g2p-en's own code
    words: list[str]  # those of the config, then its list of homographs
    digests: dict[str, str]  # SHA-256


class Found(NamedTuple):
    """What a run measures."""

    sound: sounds.Sound
    theirs: Theirs
    of_vad: dict[str, float]  # largest absolute differences
    of_g2p: dict[str, float]
    unlike: list[str]  # words whose phonemes differ
    timed: list[Timed]
    saliency: Saliency
    points: list[Point]


class Config(Table):
    experiment: Literal["pretrained"]
    files: Files = Files()
    sound: Sound = Sound()
    words: Many[str] = ("photograph", "knight", "through", "cough", "psychology", "activationist")  # those drawn
    explained: int = Field(default=64, gt=0)  # of how many words gradients are taken, at least those that are drawn
    points: Points = Points()
    repeats: int = Field(default=11, gt=0)  # of each timing
    _networks: Networks | None = PrivateAttr(default=None)

    @field_validator("words")
    @classmethod
    def words_are_of_small_letters(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            if not (word.isascii() and word.isalpha() and word.islower()):
                raise ValueError(f"expected words of the letters a to z, got {word!r}")
        return words

    def read_data(self) -> None:
        """Find and read the files: the commands call it before a run has a directory.

        Raises:
            DataError: one line that names the key of the config, and the extra to install where a package is missing.
        """
        of_vad = files.found(silero.KEY, self.files.silero, "silero_vad", silero.NAME)
        of_g2p = files.found(g2p_en.KEY, self.files.g2p_en, "g2p_en", g2p_en.NAME)
        files.imported(silero.KEY, "onnxruntime")
        self._networks = Networks(
            silero.read(of_vad),
            g2p_en.read(of_g2p),
            g2p_en.published(of_g2p),
            g2p_en.words(of_g2p, self.words),
            {path.name: digest(path) for path in (of_vad, of_g2p)},
        )

    @property
    def networks(self) -> Networks:
        """Those of the files, read at the first call."""
        if self._networks is None:
            self.read_data()
        assert self._networks is not None
        return self._networks


def run(config: Config, directory: Path) -> None:
    """Compare, time, explain, and write it down."""
    networks, found = config.networks, measure(config)
    shown = len(config.words)
    drawings = {
        "speech.png": showing.speech(found.sound, found.theirs),
        "saliency.png": showing.letters(list(config.words), found.saliency),
    }
    notes = notes_of(config, found)
    report.write_table(directory, rows(found), notes, packages=PACKAGES)
    summary = {
        "differences": {"silero-vad": found.of_vad, "g2p-en": found.of_g2p, "words": found.unlike},
        "timed": [timed._asdict() for timed in found.timed],
        "fixed_points": [point._asdict() for point in found.points],
        "agreement": found.saliency.agreement(explained_by(config)),
        "sha256": networks.digests,
        "environment": environment(PACKAGES),
    }
    (directory / "summary.json").write_text(report.to_json(summary, indent=2) + "\n", encoding="utf-8")
    samples.write(directory, showing.samples_of(networks.words[:shown], found.saliency, found.points))
    for name, figure in drawings.items():
        figures.save(figure, directory / name)
    Console().print("\n".join([*notes, f"written to {directory}"]), markup=False, highlight=False, soft_wrap=True)


def measure(config: Config) -> Found:
    vad, g2p, package, words, _ = config.networks
    sound = sounds.syllables(config.sound.seconds, config.sound.seed)
    theirs = silero.theirs(vad, sounds.frames(sound.samples))
    of_g2p, unlike = g2p_en.differences(g2p, package, words)
    return Found(
        sound,
        theirs,
        silero.differences(vad, theirs),
        of_g2p,
        unlike,
        speed.of_silero(vad, theirs, config.repeats) + speed.of_g2p(g2p, package, words, config.repeats),
        explaining.saliency(g2p, explained_by(config)),
        explaining.fixed_points(g2p, explained_by(config), config.points),
    )


def explained_by(config: Config) -> list[str]:
    """The words of which gradients are taken."""
    return config.networks.words[: max(config.explained, len(config.words))]


def rows(found: Found) -> list[tuple[str, ...]]:
    header = ("network", "what", "their own runtime, ms", "jaxrnn, ms", "times as fast", "largest difference")
    worst = {"silero-vad": max(found.of_vad.values()), "g2p-en": max(found.of_g2p.values())}
    return [
        header,
        *(
            (
                t.network,
                t.what,
                f"{t.theirs:.3g}",
                f"{t.ours:.3g}",
                f"{t.theirs / t.ours:.3g}",
                f"{worst[t.network]:.0e}",
            )
            for t in found.timed
        ),
    ]


def notes_of(config: Config, found: Found) -> list[str]:
    networks = config.networks
    same, chance = found.saliency.agreement(explained_by(config))
    spoken = showing.by_frame(found.sound, len(found.theirs.speech))
    voice, pause = found.theirs.speech[spoken == 1].mean(), found.theirs.speech[spoken == 0].mean()
    digests = ", ".join(f"{name} (SHA-256 {sha:.12})" for name, sha in networks.digests.items())
    return [
        f"Their own runtimes: onnxruntime on one thread, as silero-vad asks for; g2p-en's NumPy code, word after word. "
        f"Milliseconds: medians of {config.repeats} turns, compilation apart. Files: {digests}.",
        f"Largest differences, silero-vad on {len(found.theirs.speech)} frames of its graph's own activations: "
        f"{listed(found.of_vad)}. g2p-en on {len(networks.words):,} words: {listed(found.of_g2p)}; "
        f"{len(found.unlike)} words are said otherwise{': ' + ', '.join(found.unlike) if found.unlike else ''}.",
        f"The sound: synthesised syllables and pauses; the mean probability of speech is {voice:.2f} in frames of "
        f"syllables alone and {pause:.2f} in frames without.",
        f"Gradients by letters: the letter with the largest gradient of a phoneme's log probability is the one whose "
        f"loss makes it fall most in {100 * same:.0f} % of the phonemes of {len(explained_by(config))} words, by "
        f"chance in {100 * chance:.0f} %.",
        f"Fixed and slow points (q up to {config.points.tolerance:g}) of a decoder that reads one phoneme for ever, "
        f"{config.points.starts} starts each: {showing.in_words(config.points.inputs, found.points)}.",
    ]


def listed(differences: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
