import jax, jax.numpy as jnp, numpy as np, sys, re
import jaxrnn as jr
from jaxrnn.parallel_over_time.parallel import parallel
T,H,K=4096,16,64
cell=jr.gru(H,H); params=cell.init(jax.random.key(0)); xs=jnp.asarray(np.random.default_rng(0).normal(size=(T,1,H)),jnp.float32)
layer=parallel(cell,chunks=K)
f=jax.jit(layer.apply) if sys.argv[1]=="f" else jax.jit(jax.grad(lambda p,x: (layer.apply(p,x)[1]**2).mean(),(0,1)))
txt=f.lower(params,xs).compile().as_text()
open("/tmp/w/par.hlo","w").write(txt)
comp=None
for line in txt.splitlines():
    if line and not line.startswith(" ") and "{" in line: comp=line.split("(")[0].strip()
    if " copy(" in line or "copy_fusion" in line.split("=")[0]: print(comp[:60],"|",line.strip()[:110])
