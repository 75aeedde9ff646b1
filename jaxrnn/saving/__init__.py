"""A model and its parameters in one file of the safetensors format, ``jr.save`` and ``jr.load``: no code, no pickle.

What jaxrnn adds to the format is one text in the file's metadata, so that the file alone rebuilds the model. One file
a subject:

    models.py      save and load
    records.py     the text: the model's spec and the user's metadata
    digests.py     what tells that a bit of either has changed
    parameters.py  parameters by name, checked against the model's own
    files.py       safetensors files of anybody's: header, tensors, writing a file whole or not at all
"""

from jaxrnn.saving.models import load, save

__all__ = ["load", "save"]
