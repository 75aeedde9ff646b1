import jax, jax.numpy as jnp, numpy as np, time, sys
import jaxrnn as jr
def med(f,*a,n=9):
    jax.block_until_ready(f(*a)); ts=[]
    for _ in range(n):
        t=time.perf_counter(); jax.block_until_ready(f(*a)); ts.append(time.perf_counter()-t)
    return 1e3*sorted(ts)[n//2]
for name in sys.argv[1].split(","):
    kind,H=name.split("-"); H=int(H)
    cell=dict(gru=lambda: jr.gru(H,H),lstm=lambda: jr.lstm(H,H),elman=lambda: jr.elman(H,H),lru=lambda: jr.lru(H,H),mingru=lambda: jr.min_gru(H,H))[kind]()
    params=cell.init(jax.random.key(0))
    for T,B in ((65536,1),(512,128),(256,256),(128,512),(64,1024),(32,2048)):
        xs=jnp.asarray(np.random.default_rng(0).normal(size=(T,B,H)),jnp.float32)
        layer=jr.scan(cell)
        f=jax.jit(layer.apply); g=jax.jit(jax.grad(lambda p,x: (layer.apply(p,x)[1]**2).mean(),(0,1)))
        print(name,T,B,"fwd %.1f train %.1f"%(med(f,params,xs),med(g,params,xs)),flush=True)
