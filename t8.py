import jax, jax.numpy as jnp, numpy as np, time, sys
import jaxrnn as jr
def med(f,*a,n=9):
    jax.block_until_ready(f(*a)); ts=[]
    for _ in range(n):
        t=time.perf_counter(); c=time.process_time(); jax.block_until_ready(f(*a)); ts.append((time.perf_counter()-t,time.process_time()-c))
    return "%.1f(%.1f)"%tuple(1e3*x for x in sorted(ts)[n//2])
H=16;T,B=128,512
cell=jr.gru(H,H); params=cell.init(jax.random.key(0))
xs=jnp.asarray(np.random.default_rng(0).normal(size=(T,B,H)),jnp.float32)
for nm,plan in (("auto","auto"),("plain","plain"),("nothing",jr.Plan(fuse=False,hoist=False,contract=False,recompute=False)),("contract",jr.Plan(contract=True)),("norec",jr.Plan(recompute=False)),("hoist",jr.Plan(hoist=True,contract=True))):
    layer=jr.scan(cell,plan=plan)
    f=jax.jit(layer.apply); g=jax.jit(jax.grad(lambda p,x: (layer.apply(p,x)[1]**2).mean(),(0,1)));g2=jax.jit(jax.grad(lambda p,x: (layer.apply(p,x)[1]**2).mean()))
    v=jax.jit(lambda p,x: jax.vjp(layer.apply,p,x)[0])
    print(nm,"fwd",med(f,params,xs),"grad both",med(g,params,xs),"params",med(g2,params,xs),flush=True)
