import jax, jax.numpy as jnp, numpy as np, time, sys
import jaxrnn as jr
from jaxrnn.parallel_over_time.parallel import parallel
T=int(sys.argv[1]); names=sys.argv[2].split(","); K=int(sys.argv[3]); plan=sys.argv[4] if len(sys.argv)>4 else "auto"
def med(f,*a,n=5):
    jax.block_until_ready(f(*a)); ts=[]
    for _ in range(n):
        t=time.perf_counter(); jax.block_until_ready(f(*a)); ts.append(time.perf_counter()-t)
    return 1e3*sorted(ts)[n//2]
for name in names:
    kind,H=name.split("-"); H=int(H)
    cell=dict(gru=lambda: jr.gru(H,H),gruafter=lambda: jr.gru(H,H,reset="after"),lstm=lambda: jr.lstm(H,H),elman=lambda: jr.elman(H,H),lru=lambda: jr.lru(H,H),mingru=lambda: jr.min_gru(H,H))[kind]()
    params=cell.init(jax.random.key(0)); xs=jnp.asarray(np.random.default_rng(0).normal(size=(T,1,H)),jnp.float32)
    out={}
    for way,layer in (("scan",jr.scan(cell)),("par",parallel(cell,chunks=K,plan=plan,method="associative" if cell.affine else "chunks"))):
        f=jax.jit(layer.apply); g=jax.jit(jax.grad(lambda p,x: (layer.apply(p,x)[1]**2).mean(),(0,1)))
        out[way]=(med(f,params,xs),med(g,params,xs)); out[way+"v"]=(f(params,xs),g(params,xs))
    err=jax.tree.map(lambda a,b: float(jnp.abs(a-b).max()/(jnp.abs(a).max()+1e-30)),out["scanv"],out["parv"])
    s,p=out["scan"],out["par"]
    print(name,"fwd %.1f %.1f (%.2f)  train %.1f %.1f (%.2f)"%(s[0],p[0],p[0]/s[0],s[1],p[1],p[1]/s[1]),"err",max(jax.tree.leaves(err)),flush=True)
