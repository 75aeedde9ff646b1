import jax, jax.numpy as jnp, numpy as np, time
jax.config.update("jax_enable_x64", True)
from jaxrnn.programs.chunked import chunked_scan, Chunking
from jaxrnn.programs.sweeping import Way
rng=np.random.default_rng(0)
H=5;B=2
def run(T,K,sweeps,reverse,gain=0.9):
    W=jnp.asarray(rng.normal(size=(H,H))*gain/np.sqrt(H)); xs=jnp.asarray(rng.normal(size=(T,B,H))); h0=jnp.asarray(rng.normal(size=(B,H)))
    def body(W,c,x):
        h=jnp.tanh(c[0]@W+x[0]); return [h],[jnp.sin(h)]
    def par(W,h0,xs):
        (e,),(ys,)=chunked_scan(lambda c,x: body(W,c,x),[h0],[xs],chunking=Chunking(Way(K,sweeps,row_axes=1)),reverse=reverse); return e,ys
    def seq(W,h0,xs):
        (e,),(ys,)=jax.lax.scan(lambda c,x: body(W,c,x),[h0],[xs],reverse=reverse); return e,ys
    def loss(f): return lambda *a: (lambda o: (o[0]**2).sum()+jnp.sum(jnp.cos(o[1])))(f(*a))
    a=jax.jit(jax.value_and_grad(loss(par),(0,1,2)))(W,h0,xs); b=jax.jit(jax.value_and_grad(loss(seq),(0,1,2)))(W,h0,xs)
    err=jax.tree.map(lambda x,y: float(jnp.abs(x-y).max()),a,b); print(T,K,sweeps,reverse,err)
for rev in (False,True):
    run(6,2,4,rev); run(7,3,2,rev); run(7,3,3,rev); run(512,8,4,rev,0.5); run(513,8,4,rev,2.)
W=jnp.asarray(rng.normal(size=(H,H))*.4/np.sqrt(H)); xs=jnp.asarray(rng.normal(size=(12,B,H))); h0=jnp.asarray(rng.normal(size=(B,H)))
def f(par):
    def g(W,h0):
        body=lambda c,x: ([jnp.tanh(c[0]@W+x[0])],[jnp.sin(c[0])])
        (e,),(ys,)=chunked_scan(body,[h0],[xs],chunking=Chunking(Way(3,4,row_axes=1))) if par else jax.lax.scan(body,[h0],[xs])
        return (e**2).sum()+ys.sum()
    return g
for op in (lambda f: jax.hessian(f), lambda f: jax.hessian(f,argnums=1), lambda f: jax.vmap(jax.grad(f),(0,None)), lambda f: jax.vmap(jax.grad(f,1),(None,0))):
    arg=lambda i,x: x
    import inspect
    for args in ((W,h0),):
        try:
            a=jax.jit(op(f(True)))(*args); b=jax.jit(op(f(False)))(*args)
        except Exception as e:
            args=(jnp.stack([W,2*W]),h0)
            try: a=jax.jit(op(f(True)))(*args); b=jax.jit(op(f(False)))(*args)
            except Exception as e:
                args=(W,jnp.stack([h0,-h0])); a=jax.jit(op(f(True)))(*args); b=jax.jit(op(f(False)))(*args)
        print(float(jnp.abs(a-b).max()), a.shape)
