"""Kernels: a loop over time as one kernel of a GPU, generated from the program of its step.

``recurrence`` says what of a step the kernel does, and where the rest is done; ``split`` shares it among blocks;
``persistent`` writes the kernel; ``memory`` says how much of a layer fits where. docs/persistent_kernels.md has the
design.
"""
