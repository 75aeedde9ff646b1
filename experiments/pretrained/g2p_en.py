"""The encoder and the decoder of g2p-en, GRUs from letters to phonemes: its arrays, run by its own code and by us.

Importing the package downloads data of another, so it is only found. Of its source the class is executed alone, with
NumPy and an empty dictionary: what it computes of a word is what the package computes of a word that it does not know.
"""

from __future__ import annotations

import ast
import os
import re
import string
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

import jaxrnn as jr
from experiments.data.records import DataError
from jaxrnn.interop.torch import from_torch

PyTree = Any
KEY = "files.g2p_en"
NAME = "checkpoint20.npz"
STEPS = 20  # the most phonemes that the package says of a word

GRAPHEMES = ("<pad>", "<unk>", "</s>", *string.ascii_lowercase)
_VOWELS = ["AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"]
_OTHERS = "B CH D DH F G HH JH K L M N NG P R S SH T TH UW V W Y Z ZH"  # UW: once without stress
PHONEMES = (
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    *sorted([f"{v}{stress}" for v in _VOWELS for stress in "012"] + _OTHERS.split()),
)
BEGIN, END = PHONEMES.index("<s>"), PHONEMES.index("</s>")


class Params(NamedTuple):
    letters: jax.Array  # (29, E), a row for each of GRAPHEMES
    encoder: PyTree
    decoder: PyTree  # of a chain: embedding (74, E), GRU, readout (74)


class G2P(NamedTuple):
    encoder: jr.Layer  # E -> H
    decoder: jr.Cell  # token -> logits (74)
    gru: jr.Cell  # the one in the decoder
    params: Params


def read(path: Path) -> G2P:
    """The arrays of the file, which are named and laid out as PyTorch does, as layers.

    Raises:
        DataError: they are others, in one line.
    """
    try:
        with np.load(path) as arrays:
            a = {name: arrays[name] for name in arrays.files}
        encoder, of_encoder = from_torch({f"{name}_l0": a[f"enc_{key}"] for name, key in _NAMES.items()})
        gru, of_gru = from_torch({name: a[f"dec_{key}"] for name, key in _NAMES.items()})
        tables = {"enc_emb": GRAPHEMES, "dec_emb": PHONEMES, "fc_w": PHONEMES}
        for name, symbols in tables.items():
            if len(a[name]) != len(symbols):
                raise ValueError(f"{name} has {len(a[name])} rows, for {len(symbols)} symbols")
        readout = jr.cells.ReadoutParams(jnp.asarray(a["fc_w"].T), jnp.asarray(a["fc_b"]))
        table = jr.cells.EmbeddingParams(jnp.asarray(a["dec_emb"]))
        params = Params(jnp.asarray(a["enc_emb"]), of_encoder, (table, of_gru, readout))
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = re.sub(r"\s+", " ", str(error))
        raise DataError(f"{KEY}: {path}: expected the arrays of g2p-en's {NAME}, got: {said}") from None
    V, E = a["dec_emb"].shape
    assert isinstance(encoder, jr.Layer) and isinstance(gru, jr.Cell)  # by the names of the arrays
    H = len(a["fc_w"].T)
    return G2P(encoder, jr.chain(jr.embedding(V, E), gru, jr.readout(H, V)), gru, params)


_NAMES = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}


def published(path: Path) -> Any:
    """An object of the package's class G2p, from the source beside the arrays; no module of it is imported.

    Raises:
        DataError: there is no such source.
    """
    source = path.parent / "g2p.py"
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "G2p")
    except (OSError, ValueError, SyntaxError):
        raise DataError(f"{KEY}: {source}: expected g2p-en's source with its class G2p beside the arrays") from None
    empty = types.SimpleNamespace(dict=dict)
    names: dict[str, Any] = {"np": np, "os": os, "dirname": str(path.parent), "cmudict": empty}
    names["construct_homograph_dictionary"] = dict
    exec(compile(ast.Module([found], []), str(source), "exec"), names)
    package = names["G2p"]()
    for name, symbols in (("graphemes", GRAPHEMES), ("phonemes", PHONEMES)):
        if tuple(getattr(package, name, symbols)) != symbols:
            raise DataError(f"{KEY}: {source}: expected the {name} of g2p-en 2.1.0 in their order, got others")
    return package


def words(path: Path, at_least: Sequence[str]) -> list[str]:
    """These words, and the headwords of the package's list of homographs, where it lies beside the arrays."""
    beside = path.parent / "homographs.en"
    lines = beside.read_text(encoding="utf-8").splitlines() if beside.is_file() else []
    heads = [line.partition("|")[0].strip().lower() for line in lines if not line.startswith("#")]
    return list(dict.fromkeys([*at_least, *(word for word in heads if word.isascii() and word.isalpha())]))


def tokens_of(some: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(T, B) integers and (B,) lengths: each word's letters and </s>."""
    lengths = np.array([len(word) + 1 for word in some])
    tokens = np.zeros((lengths.max(), len(some)), np.int32)
    for b, word in enumerate(some):
        spelled = [GRAPHEMES.index(letter) if letter in GRAPHEMES else 1 for letter in word]
        tokens[: lengths[b], b] = [*spelled, GRAPHEMES.index("</s>")]
    return tokens, lengths


def encoded(model: G2P, params: Params, letters: jax.Array, lengths: Any) -> jax.Array:
    """(B, H): the state after each word, of its letters' vectors (T, B, E)."""
    return model.encoder.apply(params.encoder, letters, lengths=lengths)[0]


def said(model: G2P, params: Params, tokens: Any, lengths: Any) -> jr.decoding.Generated:
    """The likeliest phoneme at each step, up to </s>: all words in one program."""
    h = encoded(model, params, params.letters[tokens], lengths)
    first = jnp.full(h.shape[:1], BEGIN)
    return jr.generate(model.decoder, params.decoder, ((), h, ()), first, steps=STEPS, stop=END)


def logits(model: G2P, params: Params, h: jax.Array, phonemes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(T, B, 74) and the states (T, B, H), where the decoder reads <s> and these phonemes (T - 1, B)."""
    begin = jnp.full((1, *phonemes.shape[1:]), BEGIN, phonemes.dtype)

    def step(carry, token):
        carry, y = model.decoder.step(params.decoder, carry, token)
        return carry, (y, carry[1])

    return jax.lax.scan(step, ((), h, ()), jnp.concatenate([begin, phonemes]))[1]


def spelled(generated: jr.decoding.Generated, b: int) -> list[str]:
    """The phonemes of one word, without </s>."""
    tokens = np.asarray(generated.tokens)[: int(generated.lengths[b]), b]
    return [PHONEMES[token] for token in tokens if token != END]


class Theirs(NamedTuple):
    """What the package's own functions compute of a word."""

    encoded: np.ndarray  # (H,)
    logits: np.ndarray  # (N, 74), where it reads the phonemes that it said before
    phonemes: list[str]


def theirs(package: Any, word: str) -> Theirs:
    """As its ``predict`` goes, by its ``encode``, ``gru`` and ``grucell``, with the numbers between kept."""
    weights = [getattr(package, f"enc_{name}") for name in _NAMES.values()]
    h = package.gru(package.encode(word), len(word) + 1, *weights)[:, -1]
    state, phonemes = h, package.predict(word)
    weights = [getattr(package, f"dec_{name}") for name in _NAMES.values()]
    read = [BEGIN, *(PHONEMES.index(phoneme) for phoneme in phonemes)][:STEPS]
    all_logits = []
    for token in read:
        state = package.grucell(package.dec_emb[[token]], state, *weights)
        all_logits.append((state @ package.fc_w.T + package.fc_b)[0])
    return Theirs(h[0], np.stack(all_logits), phonemes)


def differences(model: G2P, package: Any, some: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """The largest absolute differences, all words in one batch; and the words that the two do not say alike."""
    tokens, lengths = tokens_of(some)
    of_package = [theirs(package, word) for word in some]
    read = np.zeros((max(len(one.logits) for one in of_package) - 1, len(some)), np.int32)
    for b, one in enumerate(of_package):
        read[: len(one.logits) - 1, b] = [PHONEMES.index(phoneme) for phoneme in one.phonemes][: len(one.logits) - 1]

    @jax.jit
    def ours(params, tokens, lengths, read):
        h = encoded(model, params, params.letters[tokens], lengths)
        return h, logits(model, params, h, read)[0], said(model, params, tokens, lengths)

    h, ys, generated = ours(model.params, tokens, lengths, read)
    h, ys = np.asarray(h), np.asarray(ys)
    found = {"encoder": 0.0, "logits over the largest": 0.0, "probabilities": 0.0}
    for b, one in enumerate(of_package):
        n, logit = len(one.logits), np.abs(one.logits).max()
        pairs = (
            (h[b], one.encoded),
            (ys[:n, b] / logit, one.logits / logit),
            (scipy.special.softmax(ys[:n, b], axis=-1), scipy.special.softmax(one.logits, axis=-1)),
        )
        for name, (a, theirs_) in zip(found, pairs, strict=True):
            found[name] = max(found[name], float(np.abs(np.asarray(a) - theirs_).max()))
    unlike = [word for b, word in enumerate(some) if spelled(generated, b) != of_package[b].phonemes]
    return found, unlike
