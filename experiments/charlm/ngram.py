"""An n-gram of characters with interpolated Kneser-Ney smoothing: what a network of characters has to beat."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import NamedTuple

UNKNOWN = 0.5  # the discount where the counts of counts do not say one


class Order(NamedTuple):
    """The counts of k-grams: how often they occur, at the highest k; else after how many different characters."""

    counts: Counter[str]  # c(h w), by the k characters
    totals: Counter[str]  # c(h ·) = Σ_w c(h w), by the context h of k - 1 characters
    kinds: Counter[str]  # N₁₊(h ·): how many different characters follow h
    discount: float  # D


class KneserNey:
    """Probabilities of the next character, from the counts of a text.

        p_k(w | h) = max(c(h w) - D_k, 0) / c(h ·) + D_k N₁₊(h ·) / c(h ·) · p_{k-1}(w | h')        p_0 = 1 / V

    h' is h without its oldest character. A context that never occurred leaves p_{k-1} as it is. D_k = n₁ / (n₁ + 2 n₂)
    with n_j the number of k-grams that are counted j times, or 0.5 where one of the two is 0.

    Args:
        text: what is learned.
        order: n, the longest k; contexts have n - 1 characters.
        alphabet: the V characters that there are; the text has no others.

    Raises:
        ValueError: an order below 1, no text, or a text with a character that is not in the alphabet.

    Example:
        >>> model = KneserNey("aababc", 2, "abc")
        >>> [round(model.probability("a", w), 4) for w in "abc"]  # D₂ = 0.6, D₁ = 0.5
        [0.3333, 0.5667, 0.1]

    Reference:
        Kneser & Ney, "Improved backing-off for m-gram language modeling", ICASSP 1995; interpolated, with one discount
        an order, as in Chen & Goodman, "An empirical study of smoothing techniques for language modeling", 1999.
    """

    def __init__(self, text: str, order: int, alphabet: str) -> None:
        if order < 1 or not text:
            raise ValueError(f"KneserNey: expected an order of 1 or more and some text, got {order} and {len(text)}")
        if strange := set(text) - set(alphabet):
            raise ValueError(f"KneserNey: the text has {min(strange)!r}, which is not in the alphabet; add it")
        self.order, self.alphabet = order, alphabet
        counts = _grams(text, order)
        found = [_order(counts)]
        for k in range(order - 1, 0, -1):
            # Every different (k+1)-gram counts once for the k-gram that it ends with.
            counts = Counter(gram[1:] for gram in _grams(text, k + 1))
            found.append(_order(counts))
        self.orders = found[::-1]  # of k = 1, 2 … n

    @property
    def parameters(self) -> int:
        """How many counts there are."""
        return sum(len(of.counts) for of in self.orders)

    def probability(self, context: str, character: str) -> float:
        """p(character | the last n - 1 characters of the context), or what there is of them."""
        p = 1 / len(self.alphabet)
        for k, of in enumerate(self.orders):  # k characters of context
            if k > len(context):
                break
            h = context[len(context) - k :]
            total = of.totals[h]
            if not total:
                break
            p = (max(of.counts[h + character] - of.discount, 0) + of.discount * of.kinds[h] * p) / total
        return p

    def bits(self, text: str, before: str = "") -> float:
        """The mean of -log₂ p over the characters of a text; the first of them follow ``before``."""
        whole, n = before + text, self.order - 1
        begin = len(before)
        return -sum(
            math.log2(self.probability(whole[max(t - n, 0) : t], whole[t])) for t in range(begin, len(whole))
        ) / len(text)

    def generate(self, context: str, steps: int, temperature: float, seed: int) -> str:
        """Go on after the context: p^(1 / temperature), over its sum."""
        draw, text = random.Random(seed), context
        for _ in range(steps):
            weights = [self.probability(text[-self.order :], w) ** (1 / temperature) for w in self.alphabet]
            text += draw.choices(self.alphabet, weights)[0]
        return text[len(context) :]


def _grams(text: str, k: int) -> Counter[str]:
    return Counter(text[t : t + k] for t in range(len(text) - k + 1))


def _order(counts: Counter[str]) -> Order:
    totals: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for gram, count in counts.items():
        totals[gram[:-1]] += count
        kinds[gram[:-1]] += 1
    of_counts = Counter(counts.values())
    once, twice = of_counts[1], of_counts[2]
    return Order(counts, totals, kinds, once / (once + 2 * twice) if once and twice else UNKNOWN)
