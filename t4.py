import jax, jax.numpy as jnp, numpy as np, sys
import jaxrnn as jr
from jaxrnn.parallel_over_time.parallel import parallel
from jaxrnn.programs.chunked import reporting
T,K=int(sys.argv[2]),int(sys.argv[3])
for name in sys.argv[1].split(","):
    kind,H=name.split("-"); H=int(H)
    cell=dict(gru=lambda: jr.gru(H,H),gruafter=lambda: jr.gru(H,H,reset="after"),lstm=lambda: jr.lstm(H,H),elman=lambda: jr.elman(H,H),lru=lambda: jr.lru(H,H),mingru=lambda: jr.min_gru(H,H))[kind]()
    params=cell.init(jax.random.key(0)); xs=jnp.asarray(np.random.default_rng(0).normal(size=(T,1,H)),jnp.float32)
    layer=parallel(cell,chunks=K,method="associative" if cell.affine else "chunks")
    with reporting() as r:
        out,vjp=jax.vjp(lambda p,x: layer.apply(p,x)[1],params,xs); vjp(2*out/out.size)
    print(name); [print("  ",x) for x in r]
