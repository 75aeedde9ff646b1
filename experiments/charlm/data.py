"""A text, cut in three, as numbers of its characters; and the batches of readers that go on where they stopped."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import splits
from experiments.data.files import path_of
from experiments.data.records import refuse
from jaxrnn._checks import nearest

OTHER = "\ufffd"  # stands for every character that is rare in the training text, or not in it
TOPICS = "the pages of Python's help(), pydoc_data.topics, each paragraph once"


class Texts(splits.ReadOnce):
    """Three parts of one text, one after the other. ``test()`` hands out the last, once."""

    def __init__(self, train: str, validation: str, test: str) -> None:
        self.train, self.validation = train, validation
        self.sizes = {"train": len(train), "validation": len(validation), "test": len(test)}
        self._test = test

    def test(self) -> str:
        """The test text, for the final evaluation.

        Raises:
            TestSplitError: at the second call.
        """
        return self._handed_out("text", self._test)


class Alphabet(NamedTuple):
    """The characters that models tell apart; ``OTHER`` is the last."""

    characters: str

    def plain(self, text: str) -> str:
        """The text with OTHER in the place of what is not in the alphabet."""
        known = set(self.characters)
        return "".join(c if c in known else OTHER for c in text)

    def encode(self, text: str) -> np.ndarray:
        """(T,) int32: the place of each character."""
        place = {c: n for n, c in enumerate(self.characters)}
        return np.array([place.get(c, len(place) - 1) for c in text], np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        return "".join(self.characters[n] for n in tokens)


def topics() -> str:
    """What ships with this Python, in the order of the topics' names; other Pythons have other texts.

    Many topics are parts of others. Each paragraph is taken where it stands first, so that no text is tested on that
    was learned from, word for word.
    """
    import pydoc_data.topics

    seen: dict[str, None] = {}
    for _, topic in sorted(pydoc_data.topics.topics.items()):
        for paragraph in topic.split("\n\n"):
            seen.setdefault(paragraph.strip("\n"))
    return "\n\n".join(paragraph for paragraph in seen if paragraph.strip()) + "\n"


def read(path: str) -> str:
    """A text file in UTF-8; "" stands for ``topics``.

    Raises:
        DataError: one line that names the file, what is wrong with it, and the fix.
    """
    if not path:
        return topics()
    file = path_of(path)
    if file.is_dir():
        refuse(file, what="is a folder", fix="name a text file in it")
    if not file.exists():
        there = [str(other) for other in file.parent.glob("*")] if file.parent.is_dir() else []
        refuse(
            file, what=f"no such file{nearest(str(file), there, '')}", fix="give its path from the current directory"
        )
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        refuse(file, what=f"cannot be read: {error.strerror or error}", fix="see to its permissions")
    except UnicodeDecodeError as error:
        refuse(
            file,
            f"byte {error.start + 1}",
            what=f"is not UTF-8 ({error.reason})",
            fix="convert the file, as by iconv -f latin1 -t utf-8",
        )
    return text.replace("\r\n", "\n")


def digest(text: str) -> str:
    """SHA-256 of the text, which the models read from then on."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def cut(text: str, validation: float, test: float) -> Texts:
    """The first part is learned from, the next one chooses, the last one judges."""
    ends = round(len(text) * (1 - validation - test)), round(len(text) * (1 - test))
    return Texts(text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :])


def alphabet(train: str, rarest: int) -> Alphabet:
    """Every character that the training text has ``rarest`` times or more, in the order of their numbers."""
    counts = Counter(train)
    return Alphabet("".join(sorted(c for c, n in counts.items() if n >= rarest and c != OTHER)) + OTHER)


class Window(NamedTuple):
    """A part of a text for each of B readers."""

    xs: Any  # (T, B) int32: what is read
    ys: Any  # (T, B): what follows, to be predicted
    resets: Any  # (T, B): where a reader begins the text
    scored: Any  # (T, B): all but the step from the text's end to its beginning


def window(text: jax.Array, readers: int, steps: int, number: jax.Array, first: jax.Array) -> Window:
    """The batch of that number, for ``readers`` that read round and round in the same text (N,), at equal distances.

        t_b(number) = first + b N / B + number T   (mod N)

    What follows in one batch begins where the batch before has ended, so the carry may be kept; a reader that comes to
    the end of the text is reset as it begins anew.

    Args:
        number: times steps it must be below 2³¹, as the config sees to.
        first: where the first reader begins, below N.
    """
    N = len(text)
    start = jnp.mod(first + jnp.mod(number * steps, N) + jnp.arange(readers, dtype=jnp.int32) * (N // readers), N)
    at = jnp.mod(start + jnp.arange(steps + 1, dtype=jnp.int32)[:, None], N)
    return Window(text[at[:-1]], text[at[1:]], at[:-1] == 0, at[1:] != 0)


def streams(before: np.ndarray, text: np.ndarray, count: int, lead: int) -> Window:
    """A held-out text cut into ``count`` pieces that run side by side; every character of it is scored once.

    Each piece is entered ``lead`` characters early, with what stands before it, so that no state is fresh where scoring
    begins.

    Args:
        before: (M,) what precedes the text, M > lead.
        text: (N,).
    """
    whole, length = np.concatenate([before[-(lead + 1) :], text]), -(-len(text) // count)
    target = lead + 1 + np.arange(-lead, length)[:, None] + length * np.arange(count)  # (lead + length, count)
    scored = (np.arange(-lead, length)[:, None] >= 0) & (target < len(whole))
    target = np.minimum(target, len(whole) - 1)
    return Window(whole[target - 1], whole[target], np.zeros_like(scored), scored)
