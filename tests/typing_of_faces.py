"""Read by mypy alone: faces are seen without an import, and a name that is none is an error.

An ``ignore`` that nothing needs any more is an error too (``warn_unused_ignores``), so that this page fails once a type
checker is blind for a misspelt name.
"""

import jax

import jaxrnn as jr

cell: jr.Cell = jr.lstm(3, 4)
layer: jr.Layer = jr.scan(cell)
spectrum: jr.gradients.LyapunovSpectrum = jr.gradients.lyapunov_spectrum(cell, cell.init(jax.random.key(0)), None)
carry: jr.LSTMCarry = jr.cells.LSTMCarry(jax.numpy.ones(3), jax.numpy.ones(3))

misspelt = jr.lsmt  # type: ignore[attr-defined]
misspelt = jr.cells.LSTMParameters  # type: ignore[attr-defined]
misspelt = jr.gradients.lyapunov_exponents  # type: ignore[attr-defined]
misspelt = jr.training.fitt  # type: ignore[attr-defined]
jr.lstm("3", 4)  # type: ignore[arg-type]
jr.last("x", jax.numpy.ones(3, int))  # type: ignore[arg-type]
jr.training.patience("loss", "3")  # type: ignore[arg-type]
