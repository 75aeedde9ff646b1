import jax, jax.numpy as jnp, numpy as np, sys, re
import jaxrnn as jr
T,K=65536,512
name=sys.argv[1]; kind,H=name.split("-"); H=int(H)
cell=dict(gru=lambda: jr.gru(H,H),lstm=lambda: jr.lstm(H,H),elman=lambda: jr.elman(H,H),lru=lambda: jr.lru(H,H),mingru=lambda: jr.min_gru(H,H))[kind]()
params=cell.init(jax.random.key(0)); xs=jnp.asarray(np.random.default_rng(0).normal(size=(T,1,H)),jnp.float32)
layer=jr.parallel(cell,chunks=K,method="associative" if cell.affine else "chunks")
f=jax.jit(layer.apply) if sys.argv[2]=="f" else jax.jit(jax.grad(lambda p,x: (layer.apply(p,x)[1]**2).mean(),(0,1)))
c=f.lower(params,xs).compile()
txt=c.as_text(); open("/tmp/w/par.hlo","w").write(txt)
comps={}; cur=None
for line in txt.splitlines():
    if line and not line.startswith(" ") and line.rstrip().endswith("{"): cur=line.split("(")[0].strip().replace("ENTRY ",""); comps[cur]=[]
    elif cur and line.startswith("  "): comps[cur].append(line.strip())
bodies=set(re.findall(r"body=(%[\w.\-]+)",txt))
for b in bodies:
    ops=[l for l in comps[b] if not re.search(r"(get-tuple-element|parameter|constant|tuple|bitcast)\(",l)]
    print(b,len(ops))
    for l in ops: print("    ",re.sub(r", metadata=.*","",l)[:170])
