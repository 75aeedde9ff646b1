"""Where what is now ``jr.devices`` was."""

from jaxrnn._deprecated import moved_names

__getattr__ = moved_names(
    "jaxrnn.training.devices",
    {
        "batch_mesh": "jaxrnn.devices.batch_mesh",
        "replicate": "jaxrnn.devices.replicate",
        "shard_batch": "jaxrnn.devices.shard_batch",
        "use_cpu_devices": "jaxrnn.devices.use_cpu_devices",
    },
)
