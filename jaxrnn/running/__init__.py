"""Running: what happens to a sequence, from ``jr.scan(cell).apply(params, xs)`` down to ``lax.scan``.

1. ``scan.py`` makes the Layer. Its ``apply`` checks shapes and dtypes, turns ``lengths`` and ``mask`` into one array
   ``valid`` (T, *B), puts zeros into ``xs`` where a step is not valid (so what stood there, NaN included, reaches no
   gradient), moves ``resets`` to where a run in its direction reads them, and draws the cell's noise by absolute time.
   All that becomes one record, ``Run``.
2. ``_loop.py`` runs that record. It lets everything vary over the same mesh axes, takes the initial carry where none is
   given, and writes the body of the loop, in this order: reset the carry, step, hold carry and output 0 where the step
   is not valid. Narrow floats are cast inside the body, so that gradients are added up in float32. Marks on params or
   carry (``jaxrnn.instruments``) are read here.
3. ``segments.py`` cuts the run into checkpointed segments, nested ones for a ``Budget``; without ``checkpoint`` the run
   is one segment.
4. Each segment is a ``lax.scan`` of the body under ``plan="plain"``. Under any other plan ``jaxrnn.planning`` runs it.

A reversed run is ``lax.scan(reverse=True)`` of the same body: holding the carry at steps that are not valid makes it
right for padded sequences, without gathers. No step of this chain jits; the caller does.

Built on ``scan``:

    tbptt.py     truncated back-propagation: windows of a layer's run, the carry between them detached
    stream.py    one step at a time for a batch whose members come and go; ``Slots`` assigns its slots
    trace.py     the gates of a cell, at one step and over a sequence

``jr.stack``, ``jr.bidirectional`` and ``jr.residual`` (``jaxrnn/combine.py``) put such layers together.
"""
