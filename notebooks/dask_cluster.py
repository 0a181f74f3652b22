# %% [markdown]
# # On a cluster
# A scheduler and two workers, as processes of their own on this machine; on a real cluster only the address differs.
# The result is the same to the last bit as on this process's threads, and a worker that dies costs a block, not the
# night.

# %%
import tempfile
from pathlib import Path

import numpy as np
from distributed import Client, SubprocessCluster

import deo_cube

folder = Path(tempfile.mkdtemp())
deo_cube.synthetic_cube(size=384, times=1, clouds=False, gaps=False).to_zarr(
    folder / "cube.zarr", zarr_format=3, consolidated=False
)
cube = deo_cube.open_cube(folder / "cube.zarr")
emb = cube.deo.embed("tiny", block=320)
emb.chunks[-1], emb.chunks[-2]

# %% [markdown]
# With a client in the process, `to_zarr` sends each block to a worker as one task: it reads the pixels there, encodes
# them with the worker's own copy of the model, and writes its shard. Nothing large passes through here.

# %%
cluster = SubprocessCluster(n_workers=2, threads_per_worker=1)
client = Client(cluster)
client.wait_for_workers(2)
print(len(client.nthreads()), "workers")
stored = emb.deo.to_zarr(folder / "cluster.zarr")

# %%
print(deo_cube.verify_store(folder / "cluster.zarr"))
client.close()
cluster.close()

# %% [markdown]
# The same call without a client runs on threads. Same pixels, same model, same tile grid: same bytes.

# %%
alone = emb.deo.to_zarr(folder / "threads.zarr", progress=False)
np.testing.assert_array_equal(stored.values, alone.values)

# %% [markdown]
# From a shell: `deo-cube embed cube.zarr emb.zarr --scheduler tcp://scheduler:8786`.
