import jax, jax.numpy as jnp, numpy as np, time
def med(f,*a,n=9):
    jax.block_until_ready(f(*a)); ts=[]
    for _ in range(n):
        t=time.perf_counter(); jax.block_until_ready(f(*a)); ts.append(time.perf_counter()-t)
    return 1e3*sorted(ts)[n//2]
r=np.random.default_rng(0)
for N,I,O in ((65536,16,48),(65536,16,16),(65536,64,256)):
    a=jnp.asarray(r.normal(size=(N,I)),jnp.float32); b=jnp.asarray(r.normal(size=(N,O)),jnp.float32)
    f1=jax.jit(lambda a,b: a.T@b)
    f2=jax.jit(lambda a,b: jnp.einsum("ni,no->oi",a,b))
    f3=jax.jit(lambda a,b: jnp.einsum("kni,kno->kio",a.reshape(256,-1,I),b.reshape(256,-1,O)).sum(0))
    def blocked(a,b):
        A=a.reshape(256,-1,I);B=b.reshape(256,-1,O)
        return jax.lax.fori_loop(0,256,lambda i,s: s+A[i].T@B[i], jnp.zeros((I,O)))
    f4=jax.jit(blocked)
    f5=jax.jit(lambda a,b: a@jnp.ones((I,O)))
    print(N,I,O,*("%.2f"%med(f,a,b) for f in (f1,f2,f3,f4,f5)))
