"""Where what is now ``jr.devices`` was."""

from jaxrnn._deprecated import moved_names

__getattr__ = moved_names(
    "jaxrnn.training.ensemble",
    {
        "Division": "jaxrnn.devices.EnsembleLayout",
        "Ensemble": "jaxrnn.devices.Ensemble",
        "ensemble": "jaxrnn.devices.ensemble",
        "stack_members": "jaxrnn.devices.stack_members",
    },
)
