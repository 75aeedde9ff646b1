"""Where ``save`` and ``load`` were: they are ``jr.save`` and ``jr.load``."""

from jaxrnn._deprecated import moved_names

__getattr__ = moved_names("jaxrnn.interop.safetensors", {"save": "jaxrnn.save", "load": "jaxrnn.load"})
