# %% [markdown]
# # Train a student
# A small network learns from your own cubes, without labels: a moving average of itself is one teacher, a frozen RGB
# network may be a second one. Here four steps on a synthetic scene, in seconds: enough to see every part work, far
# too few to learn anything. The preset `tiny` is what trained the bundled model in half an hour on two cores.

# %%
import json
from pathlib import Path

import deo_cube
from deo_cube.train.__main__ import main as train

cube = deo_cube.synthetic_cube(size=256, times=2, seed=3, clouds=False, gaps=False)
cube.to_zarr("cube.zarr", mode="w", zarr_format=3, consolidated=False)
flags = "--preset smoke --data cube.zarr --out runs/first".split()

# %% [markdown]
# In a shell this is `python -m deo_cube.train --preset smoke --data cube.zarr --out runs/first`. With `--dry-run` it
# says what would be done, and what that needs:

# %%
assert train([*flags, "--dry-run"]) == 0

# %%
assert train(flags) == 0

# %% [markdown]
# What was measured on the way. Over a real run compression rises, expansion stays near its bound, and the effective
# rank of pooled vectors well above 5; a rank near 1 is collapse.

# %%
for line in Path("runs/first/metrics.jsonl").read_text().splitlines():
    step = json.loads(line)
    print({k: step[k] for k in ("step", "loss", "compression", "expansion", "expansion_bound")})

# %% [markdown]
# The folder of a finished run is a model, with a card that says how it was made:

# %%
print(deo_cube.card("runs/first"))
print(deo_cube.verify("runs/first"))
emb = cube.isel(time=0).deo.embed(model="runs/first").compute()
emb.sizes

# %% [markdown]
# A killed run goes on from its newest checkpoint with the same flags and `--resume`, to the same numbers as an
# undisturbed one.
