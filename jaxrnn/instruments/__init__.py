"""Instruments: what gradients/ and wrappers/ need of a run besides its results. For use inside the library.

**Marks** go around leaves of params or carry. A layer hands them down to the run that reads the leaf, and ``running/``
acts on them. ``jax.grad`` by what a mark holds is then the quantity of each step:

    PerStep(array)                a parameter with a value for each step; by it: ∂L/∂W_t     bptt_contributions
    NormProbe(array, zeros)       the norm alone, without ∂L/∂W_t itself; ``probe_zeros``    gradient_flow
    PerturbedState(array, zeros)  zeros added to a state; by them: ∂L/∂h_t                   gradient_flow

``is_marked``, ``is_per_step``, ``without_marks``, ``carry_without_marks`` and ``perturbations_of`` read marks;
``refuse_marks`` is for what cannot act on them (truncated BPTT). ``call_with_norm_probes`` runs a step that has probes.

**Norms**: ``norm`` neither overflows nor vanishes, and has a derivative at 0.

**Changed steps** run somebody's step function with something changed on its way, by its traced program:

    step_with_leaves_changed      each leaf of the new carry, where it is computed           clip_state, flow …
    step_with_carry_changed       the new carry as a whole, before the output reads it       leaky, zoneout, every …
    step_with_products_reading    what the matrix products read of the state and the input   recurrent_dropout
"""

from jaxrnn.instruments.marks import (
    NormProbe,
    PerStep,
    PerturbedState,
    carry_without_marks,
    is_marked,
    is_per_step,
    perturbations_of,
    probe_zeros,
    refuse_marks,
    without_marks,
)
from jaxrnn.instruments.norms import call_with_norm_probes, norm
from jaxrnn.instruments.stepping import step_with_carry_changed, step_with_leaves_changed, step_with_products_reading

__all__ = [
    # marks
    "PerStep",
    "NormProbe",
    "PerturbedState",
    "probe_zeros",
    "is_marked",
    "is_per_step",
    "without_marks",
    "carry_without_marks",
    "perturbations_of",
    "refuse_marks",
    "call_with_norm_probes",
    # norms
    "norm",
    # changed steps
    "step_with_leaves_changed",
    "step_with_carry_changed",
    "step_with_products_reading",
]
