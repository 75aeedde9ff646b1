"""A traced step as data: a flat list of operations, which planning/ and instruments/ take apart and put together anew.

``program``: what a program is, how it is printed, evaluated and rewritten. ``tracing``: how a function becomes one.
``primitives``: the table of what is known of each primitive.
"""
