"""Planning: how a traced step of any cell is made fast. This page explains it; ``jr.scan`` uses it.

**The derivation.** Autodiff of a scan adds into the gradient of every weight at every step: a product, a weight-sized
sum and, on a mesh, a collective inside the loop. None of that depends on the recurrence. So the step's derivative is
split: what needs the carry's tangent stays in the loop, the rest runs for all steps at once, before the tangent loop
and, transposed, after the backward one:

    forward    (carry, x_t) -> (carry, y_t), saved_t                          scan
    outside    ∂(everything but the carry), saved -> s_t                      one product over all t
    tangent    (∂carry, s_t, saved_t) -> (∂carry, ∂y_t)                       scan, linear

For a_t = W_hh h_{t-1} + W_xh x_t + b the tangent is ∂a_t = W_hh ∂h_{t-1} + s_t with s_t = ∂W_hh h_{t-1} + ∂W_xh x_t +
W_xh ∂x_t + ∂b, so that the backward loop yields d_t = ∂L/∂a_t and ∂L/∂W_hh = Σ_t h_{t-1}ᵀ d_t is one product.

The rule is a ``jax.custom_jvp`` made of two scans (``planned_scan.py``), so forward mode, reverse mode, their
compositions and ``vmap`` all work.

**The passes.** Each is a function from a ``PlannedStep`` (``planned_step.py``) to another, in a file of its own. In the
order in which they run (``PASSES`` in ``planned_scan.py``):

    fuse                   products that share an operand become one product
    join_gates             gates that have one activation become pieces of one array, in a kernel with a gradient
    linearize              adds the tangent of the step, where a derivative was asked for
    save                   the smallest set of values from which the tangent is cheap to compute
    spread                 tangents of constants get the shape of the batch once, outside the tangent loop
    split_sums             sums that are split into pieces are split first, then added
    join_pieces            or, on one CPU device, pieces are added to the whole before it is split
    transpose_weights      weights of the tangent loop are transposed once, for the backward loop's products
    hoist                  what does not depend on the carry, and holds a product that pays, leaves the loops
    weights_on_the_left    large weights of the forward loop stand on the left of their products
    join_products          sums of two products become one product, where that takes no more memory
    cut_weights            weights that the step cuts into pieces are cut once, where that takes little more memory
    sum_by_product         long sums over features, in the loops of a CPU, become products with ones
    join_contractions      gradients of weights and bias that meet in a sum become one product, on a CPU
    contract               products outside the tangent loop get transposes that run fastest
    one_kernel             a loop of one row is to be one kernel of the CPU
    persistent_kernel      the loops are to be kernels of a GPU, where the plan asks for them

All but ``linearize`` may be left out: the numbers are the same, up to the order of sums. A new pass is a function, a
file, an entry of ``PASSES`` and of this list, and a test (CONTRIBUTING.md). What passes know of primitives stands in
one table, ``jaxrnn/programs/primitives.py``; which products pay, in ``_rules.py``, with the numbers that were measured
in ``constants.py``; the choices of the user, in ``plan.py``. In a process with several CPU devices a step is planned
twice, for all of them and for one: ``one_device.py``.

**An example.** A step of an Elman network, h = σ(h W_hh + x W_xh + b), batch 2, 3 inputs, 5 units:

    >>> import difflib, jax, jax.numpy as jnp, jaxrnn as jr
    >>> plan = jr.Plan(hoist=True, contract=True, one_kernel=False)
    >>> layer = jr.scan(jr.elman(3, 5, activation=jax.nn.sigmoid), plan=plan)
    >>> params = layer.init(jax.random.key(0))
    >>> programs = jr.explain(layer, params, jnp.ones((7, 2, 3))).scans[0].programs
    >>> print(programs["trace"])
    primal
    consts: c:f32[5,5] d:f32[3,5] e:f32[5]
    carry:  a:f32[2,5]
    x:      b:f32[2,3]
    once:
      i:f32[1,5] = broadcast_in_dim e
    at each step:
      f:f32[2,5] = dot_general[1,0] a c
      g:f32[2,5] = dot_general[1,0] b d
      h:f32[2,5] = add f g
      j:f32[2,5] = add h i
      k:f32[2,5] = logistic j
    carry, y: k k

Values are letters with types; ``c, d, e`` are W_hh, W_xh and b. ``dot_general[1,0]`` contracts axis 1 of its left
operand with axis 0 of its right. The bias gets a second axis once, not at every step, for it depends on constants
alone. ``fuse`` and ``join_gates`` have nothing to do: no two products share an operand, and there are no gates.
``linearize`` traces the step anew, with its tangent:

    >>> print(programs["linearize"].tangent)
    consts: a:f32[5,5] b:f32[3,5] c:f32[5] f:f32[5,5] g:f32[3,5] h:f32[5]
    carry:  i:f32[2,5]
    x:      j:f32[2,3] e:f32[2,3] d:f32[2,5]
    once:
      aa:f32[1,5] = broadcast_in_dim c
      ab:f32[1,5] = broadcast_in_dim h
    at each step:
      q:f32[2,5] = dot_general[1,0] d a
      r:f32[2,5] = dot_general[1,0] i a
      s:f32[2,5] = dot_general[1,0] d f
      t:f32[2,5] = add_any r s
      u:f32[2,5] = dot_general[1,0] e b
      v:f32[2,5] = dot_general[1,0] j b
      w:f32[2,5] = dot_general[1,0] e g
      x:f32[2,5] = add_any v w
      y:f32[2,5] = add q u
      z:f32[2,5] = add t x
      ac:f32[2,5] = add y aa
      ad:f32[2,5] = add z ab
      ae:f32[2,5] = logistic ac
      af:f32[] = constant[1.0]
      ag:f32[2,5] = sub af ae
      ah:f32[2,5] = mul ae ag
      ai:f32[2,5] = mul ad ah
    carry, y: ai ai

``f, g, h`` are ∂W_hh, ∂W_xh and ∂b, ``i`` is ∂h_{t-1}, ``j`` is ∂x_t. All else that the tangent needs it computes
again, from ``d``, which is h_{t-1}, and ``e``, which is x_t. ``save`` changes that. The products of the step are not
cheap, so what follows from them must be saved: the sum, h_t and σ' are of one size, and σ' is the nearest to its use:

    >>> print(programs["save"])
    primal
    consts: a:f32[5,5] b:f32[3,5] c:f32[5]
    carry:  d:f32[2,5]
    x:      e:f32[2,3]
    once:
      aa:f32[1,5] = broadcast_in_dim c
    at each step:
      q:f32[2,5] = dot_general[1,0] d a
      u:f32[2,5] = dot_general[1,0] e b
      y:f32[2,5] = add q u
      ac:f32[2,5] = add y aa
      ae:f32[2,5] = logistic ac
      af:f32[] = constant[1.0]
      ag:f32[2,5] = sub af ae
      ah:f32[2,5] = mul ae ag
    carry, y: ae ae d ah
    saved: d:f32[2,5] ah:f32[2,5]
    tangent
    consts: a:f32[5,5] b:f32[3,5] c:f32[5] f:f32[5,5] g:f32[3,5] h:f32[5]
    carry:  i:f32[2,5]
    x:      j:f32[2,3] e:f32[2,3] d:f32[2,5] ah:f32[2,5]
    once:
      ab:f32[1,5] = broadcast_in_dim h
    at each step:
      r:f32[2,5] = dot_general[1,0] i a
      s:f32[2,5] = dot_general[1,0] d f
      t:f32[2,5] = add_any r s
      v:f32[2,5] = dot_general[1,0] j b
      w:f32[2,5] = dot_general[1,0] e g
      x:f32[2,5] = add_any v w
      z:f32[2,5] = add t x
      ad:f32[2,5] = add z ab
      ai:f32[2,5] = mul ad ah
    carry, y: ai ai

The next passes rewrite the tangent. What each takes out (-) and puts in (+):

    >>> def change(before, after):
    ...     old, new = (str(programs[name]).splitlines() for name in (before, after))
    ...     print(*(line for line in difflib.ndiff(old, new) if line[0] in "+-"), sep="\\n")
    >>> change("save", "spread")
    +   aj:f32[2,5] = broadcast_in_dim ab
    -   ad:f32[2,5] = add z ab
    +   ad:f32[2,5] = add z aj

``split_sums`` and ``join_pieces`` have nothing to do; a GRU, whose gates are pieces of sums, would give them something.

    >>> change("join_pieces", "transpose_weights")
    +   ak:f32[5,5] = transpose a
    -   r:f32[2,5] = dot_general[1,0] i a
    +   r:f32[2,5] = dot_general[1,1] i ak

Now the passes of both loops. ``x W_xh + b`` leaves the forward loop. Of the tangent, the four terms that do not need
∂h_{t-1} leave, and one array, their sum, enters the loop:

    >>> print(programs["hoist"])
    primal
    consts: a:f32[5,5] b:f32[3,5] c:f32[5]
    carry:  d:f32[2,5]
    x:      e:f32[2,3]
    once:
      aa:f32[1,5] = broadcast_in_dim c
    for all steps at once:
      u:f32[2,5] = dot_general[1,0] e b
      aj:f32[2,5] = sum aa u
    at each step:
      q:f32[2,5] = dot_general[1,0] d a
      ac:f32[2,5] = add q aj
      ae:f32[2,5] = logistic ac
      af:f32[] = constant[1.0]
      ag:f32[2,5] = sub af ae
      ah:f32[2,5] = mul ae ag
    carry, y: ae ae d ah
    saved: d:f32[2,5] ah:f32[2,5]
    tangent
    consts: a:f32[5,5] b:f32[3,5] c:f32[5] f:f32[5,5] g:f32[3,5] h:f32[5]
    carry:  i:f32[2,5]
    x:      j:f32[2,3] e:f32[2,3] d:f32[2,5] ah:f32[2,5]
    once:
      ak:f32[5,5] = transpose a
      ab:f32[1,5] = broadcast_in_dim h
      aj:f32[2,5] = broadcast_in_dim ab
    for all steps at once:
      s:f32[2,5] = dot_general[1,0] d f
      v:f32[2,5] = dot_general[1,0] j b
      w:f32[2,5] = dot_general[1,0] e g
      x:f32[2,5] = add_any v w
      am:f32[2,5] = sum aj x s
    at each step:
      r:f32[2,5] = dot_general[1,1] i ak
      ad:f32[2,5] = add r am
      ai:f32[2,5] = mul ad ah
    carry, y: ai ai

The weights are small, so ``weights_on_the_left`` leaves the program as it is; so does ``join_contractions``, which
would make ``w`` and ``aj`` one product if x were narrower. Then the products outside the tangent loop:

    >>> change("weights_on_the_left", "contract")
    -   s:f32[2,5] = dot_general[1,0] d f
    -   v:f32[2,5] = dot_general[1,0] j b
    -   w:f32[2,5] = dot_general[1,0] e g
    +   s:f32[2,5] = rows_by_weight d f
    +   v:f32[2,5] = rows_by_weight j b
    +   w:f32[2,5] = rows_by_weight e g

JAX transposes this tangent where a gradient is asked for. The backward loop puts out d_t = ∂L/∂a_t where the tangent
loop reads ``am``. The line of ``s`` becomes ∂L/∂W_hh = Σ_t h_{t-1}ᵀ d_t, that of ``w`` ∂L/∂W_xh = Σ_t x_tᵀ d_t, each
one contraction over time and batch; that of ``v`` becomes the gradient by x, d_t W_xhᵀ, one product for all t.

``one_kernel`` and ``persistent_kernel`` leave loops as they are where the plan says no. Of a loop that is to be one
kernel ``hoist`` takes the product ``x W_xh`` alone, not its sum with b: in a kernel a sum costs nothing.
"""

from jaxrnn.planning.explanation import Explanation, ScanExplanation, explain
from jaxrnn.planning.plan import Plan

__all__ = ["Explanation", "Plan", "ScanExplanation", "explain"]
