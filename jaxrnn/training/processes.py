"""Where what is now ``jr.devices`` was."""

from jaxrnn._deprecated import moved_names

__getattr__ = moved_names(
    "jaxrnn.training.processes",
    {"join_processes": "jaxrnn.devices.join_processes"},
)
