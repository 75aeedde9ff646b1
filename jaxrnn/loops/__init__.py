"""Loops: a scan run otherwise than ``jax.lax.scan`` would, with derivatives of its own.

counted.py           ends after a number of steps that is known when it runs
chunked.py           many steps at once: the primitive, its derivatives, its report
steps.py             what such a run is given, in which way it is run, and what came of it; step by step
sweeping.py          in chunks side by side, from starts that are guessed and made good
all_at_once.py       all steps side by side, from the carries that Newton's method finds
newton.py            Newton's method on all steps, and when to believe it
all_steps.py         the equations of all steps, their Jacobians, and the linear recurrence that these make
carry_structure.py   which numbers of a carry depend on which, by the traced step
affine_scan.py       h_t = A_t h_{t-1} + b_t
"""
