"""What ``jr.online`` refuses: each by a message that says who, what was expected, what came, and the fix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import CELLS, WRAPPERS
from tests.errors import assert_fails
from tests.test_online import loss

B, I, H = 2, 3, 4
ELMAN = jr.elman(I, H)
PARAMS = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(ELMAN.init, jax.random.key(0)))


def learner(cell=ELMAN, of=loss, **options):
    return jr.online(cell, of, **options)


def stepped(cell=ELMAN, of=loss, target=None, params=None, x=None, batch_shape=(B,), flags=None, **options):
    """One step, all right but for what is given."""
    own = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(cell.init, jax.random.key(0)))
    made = learner(cell, of, **options)
    x = jnp.ones((*batch_shape, I)) if x is None else x
    state = made.init(own, batch_shape, x=jax.ShapeDtypeStruct((*batch_shape, I), jnp.float32))
    target = jnp.zeros((*batch_shape, H)) if target is None else target
    return made.step(own if params is None else params, state, x, target, **(flags or {}))


KEY = jax.random.key(0)


@jax.custom_vjp
def clipped(a):
    return a


clipped.defvjp(lambda a: (a, None), lambda _, g: (jnp.clip(g, -1, 1),))


def own(step):
    """A user's cell with these W_xh and h."""
    return jr.Cell(
        lambda key: {"W_xh": jnp.zeros((I, H))},
        lambda params, batch_shape=(): jnp.zeros((*batch_shape, H)),
        lambda params, h, x: (lambda new: (new, new))(step(params, h, x)),
    )


WIDE = {"W_xh": jnp.zeros((I, H))}


def narrow_window():
    cell = own(lambda p, h, x: (x @ p["W_xh"]).astype(h.dtype))
    return learner(cell, rule="tbptt", window=2).init(WIDE, x=jnp.ones(I, jnp.float16))


RULE = jr.gradients.OnlineRule(
    lambda start: [jnp.zeros_like(a) for a in start.theta],
    lambda step, trace: trace,
    lambda step, trace, u: trace,
)


def of_own(**functions):
    return stepped(rule=RULE._replace(**functions))


REFUSED = {
    "functions for a rule": (
        lambda: learner(rule=(len, len, len)),
        TypeError,
        ["online(elman): rule must be a name, such as 'rtrl', or a jr.gradients.OnlineRule(init, update, gradient)"],
    ),
    "a layer": (lambda: learner(jr.scan(ELMAN)), TypeError, ["online: expected a Cell, got scan(elman), a Layer"]),
    "rule": (
        lambda: learner(rule="snp1"),
        ValueError,
        ["online(elman): rule must be one of", "'rtrl'", "'snp1'; did you mean 'snap1'?"],
    ),
    "no window": (lambda: learner(rule="tbptt"), ValueError, ["online(elman): rule='tbptt'", "give window="]),
    "a window": (
        lambda: learner(rule="rtrl", window=3),
        ValueError,
        ["online(elman): window=3 is for rule='tbptt' alone"],
    ),
    "traced masks": (
        lambda: learner(masks=jax.tree.map(lambda a: jnp.zeros(a.shape), PARAMS)),
        TypeError,
        ["online(elman): masks must be params whose values are known", "outside"],
    ),
    "masks of another tree": (
        lambda: learner(masks={"W": np.ones(3)}),
        ValueError,
        ["online(elman): masks should be ElmanParams"],
    ),
    "integers in the carry": (
        lambda: stepped(CELLS["user_clockwork"]),
        TypeError,
        ["online(user cell): carry['clock'] is int32, and there is no derivative"],
    ),
    "a loss that is no scalar": (
        lambda: stepped(of=lambda y, target: (y - target) ** 2),
        TypeError,
        ["online(elman): loss(y, target) must give one floating-point number, got float32 of shape (2, 4)", ".mean()"],
    ),
    "a target that does not fit": (
        lambda: stepped(target=jnp.zeros((B, H + 1))),
        TypeError,
        ["online(elman): loss(y, target) raises on y of array (2, 4) and target of array (2, 5)", "give targets that"],
    ),
    "a loss of another form": (
        lambda: stepped(of=lambda y: y.sum()),
        TypeError,
        ["online(elman): loss(y, target) raises on y of", "takes 1 positional argument", "another loss"],
    ),
    "a target of another batch": (
        lambda: stepped(target=jnp.zeros((3, H))),
        ValueError,
        ["online(elman): target has shape (3, 4)", "batch axes (2,)"],
    ),
    "no forward mode": (
        lambda: stepped(WRAPPERS["cotangent_clip"][0](ELMAN)),
        TypeError,
        ["online(cotangent_clip): this rule takes tangents", "no forward mode", "rule='tbptt'"],
    ),
    "no forward mode by the params alone": (
        lambda: stepped(own(lambda p, h, x: clipped(x @ p["W_xh"]) + h)),
        TypeError,
        ["online(user cell): this rule takes tangents", "no forward mode", "jax.custom_jvp in its place"],
    ),
    "a loop of open length": (
        lambda: stepped(
            own(lambda p, h, x: jax.lax.while_loop(lambda a: a.sum() < 9, lambda a: a + 1, h + x[..., :1]))
        ),
        TypeError,
        ["online(user cell): every rule goes back through the cell's step", "while_loop", "make a loop jax.lax.scan"],
    ),
    "a callback": (
        lambda: stepped(own(lambda p, h, x: jax.pure_callback(lambda h: h, h, h + x[..., :1])), rule="tbptt", window=2),
        TypeError,
        ["online(user cell): every rule goes back", "allbacks do not support JVP", "jax.custom_jvp"],
    ),
    "no key": (
        lambda: stepped(rule="uoro"),
        ValueError,
        ["online(elman): rule 'uoro' draws at random and has no key", "key=jax.random.key(0)"],
    ),
    "params of another cell": (
        lambda: stepped(params=jr.gru(I, H).init(jax.random.key(0))),
        ValueError,
        ["online(elman): params should be ElmanParams", "got GRUParams"],
    ),
    "features": (
        lambda: stepped(x=jnp.ones((B, 7))),
        ValueError,
        ["online(elman): expected x of shape (*B, 3), got 7"],
    ),
    "a mask of integers": (
        lambda: stepped(flags={"mask": jnp.ones(B)}),
        TypeError,
        ["online(elman): mask must be boolean (True for members that have an input)"],
    ),
    "a mask of another batch": (
        lambda: stepped(flags={"mask": [True]}),
        ValueError,
        ["online(elman): mask must have shape (2,), that is *B, got (1,)"],
    ),
    "the state of another rule": (
        lambda: learner(rule="uoro").step(PARAMS, learner().init(PARAMS, key=KEY), jnp.ones(I), jnp.ones(H)),
        ValueError,
        ["online(elman): state.trace should be tuple of 2", "got list of", "by this learner's own init"],
    ),
    "the state of another rank": (
        lambda: learner(rule="kf_rtrl:2").step(
            PARAMS, learner(rule="kf_rtrl:3").init(PARAMS, key=KEY), jnp.ones(I), jnp.ones(H)
        ),
        ValueError,
        ["online(elman): state.trace['products'][0][0] should have shape (2, 8), got (3, 8)"],
    ),
    "a state whose key is gone": (
        lambda: learner(rule="uoro").step(
            PARAMS, learner(rule="uoro").init(PARAMS, key=KEY)._replace(key=None), jnp.ones(I), jnp.ones(H)
        ),
        ValueError,
        ["online(elman): rule 'uoro' draws at random and has no key"],
    ),
    "inputs that a window would round": (
        lambda: learner(own(lambda p, h, x: (x @ p["W_xh"]).astype(h.dtype)), rule="tbptt", window=2).step(
            WIDE, narrow_window(), jnp.ones(I), jnp.ones(H)
        ),
        TypeError,
        [
            "online(user cell): x is float32 and the window of this state holds float16",
            "init(params, batch_shape, x=…)",
        ],
    ),
    "no state": (
        lambda: learner().step(PARAMS, None, jnp.ones((B, I)), jnp.ones((B, H))),
        TypeError,
        ["online(elman): state must be what init returned", "NoneType"],
    ),
    "a rule of numbers": (
        lambda: of_own(init=3),
        TypeError,
        ["online(elman): init of the rule must be a function, got 3"],
    ),
    "a rule that loses its trace": (
        lambda: of_own(update=lambda step, trace: trace[:-1]),
        ValueError,
        ["online(elman): the trace that the rule returned should be list of 3", "got list of 2", "the form of init's"],
    ),
    "a rule that rounds its trace": (
        lambda: of_own(update=lambda step, trace: [a.astype(jnp.bfloat16) for a in trace]),
        TypeError,
        ["online(elman): the rule's update makes bfloat16 of a trace of float32", "a.astype(float32)"],
    ),
    "a rule without a gradient": (
        lambda: of_own(gradient=lambda step, trace, u: None),
        TypeError,
        ["online(elman): the rule's gradient must be a list of arrays like step.theta, got NoneType"],
    ),
    "a rule with a gradient for other params": (
        lambda: of_own(gradient=lambda step, trace, u: [a.T for a in trace]),
        ValueError,
        ["online(elman): the rule's gradient[0] should have shape (3, 4), got (4, 3)"],
    ),
    "an input that is not known": (
        lambda: learner(CELLS["user_fast_weights"]).init(CELLS["user_fast_weights"].init(jax.random.key(0))),
        ValueError,
        ["online(user cell): what this cell reads cannot be told", "x=…"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named(case):
    assert_fails(*REFUSED[case])
