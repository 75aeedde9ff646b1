"""Where a run takes place: meshes of devices, several processes, many members in one program.

use_cpu_devices, batch_mesh, shard_batch, replicate     one batch over several devices
ensemble, stack_members                                 many parameter sets of one model
join_processes                                          one program on several hosts

``placement.py`` is for the library: with it running/, gradients/ and wrappers/ give fresh arrays the mesh axes and the
sharding of the arrays that they meet.
"""

from jaxrnn.devices.ensembles import Ensemble, EnsembleLayout, ensemble, stack_members
from jaxrnn.devices.meshes import batch_mesh, replicate, shard_batch, use_cpu_devices
from jaxrnn.devices.processes import join_processes

__all__ = [
    "use_cpu_devices",
    "batch_mesh",
    "shard_batch",
    "replicate",
    "ensemble",
    "Ensemble",
    "EnsembleLayout",
    "stack_members",
    "join_processes",
]
