"""Learning online: gradients carried forward in time, beside the state, so that no past is stored.

``learner``: ``jr.online``, masks and resets; ``step_of_batch``, what it does with a batch. ``rules``: what a rule is,
three functions of one sequence. ``problem``: a cell as these functions see it. The rules: ``influence`` (RTRL and
SnAp-n), ``uoro``, ``window`` (truncated BPTT), ``kronecker`` (KF-RTRL), ``local`` (member by member, e-prop, RFLO),
whose errors go back as ``spatial`` says; ``parts``: what belongs to which member. Behind the first: ``reach``, which
number depends on which, read from the traced derivative; ``pattern``, how the influence is stored; ``derivatives``, how
few passes through the step its Jacobians take, ``cuts``, where the step is cut for that, and ``places``, how their
entries are read; ``rows``, how most blocks are updated and weighed.
"""
