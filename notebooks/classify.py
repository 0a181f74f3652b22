# %% [markdown]
# # Twenty clicked points, a map
# Points with a label each, as tuples, a GeoDataFrame or GeoJSON; a head fitted in a second; classes and probabilities
# for the whole scene.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

import deo_cube
from deo_cube.heads.head import fit_head, load_head

ds = deo_cube.synthetic_cube(size=320, times=1, clouds=False, gaps=False)
truth = ds["land_cover"].load()
names = dict(zip(truth.attrs["flag_values"].tolist(), truth.attrs["flag_meanings"].split(), strict=True))

rng = np.random.default_rng(0)
clicks = [(float(ds.x[c]), float(ds.y[r]), names[int(truth[r, c])]) for r, c in rng.integers(0, 320, (20, 2))]
clicks[:3]

# %%
start = time.perf_counter()
emb = ds.deo.embed("tiny").isel(time=0).compute()
head = fit_head("knn", emb, clicks)
classes = head.predict(emb)
print(f"{time.perf_counter() - start:.1f} s for {emb.sizes['y']} x {emb.sizes['x']} patches")
head.report

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
shown = ListedColormap(head.classes.colors)
classes.where(classes != 255).plot.imshow(ax=left, cmap=shown, vmin=-0.5, vmax=len(head.classes) - 0.5)
left.scatter(*zip(*[(x, y) for x, y, _ in clicks], strict=True), c="k", s=6)
truth.plot.imshow(ax=right, cmap="tab10")
left.set(title="from 20 points")
right.set(title="land cover as drawn")

# %% [markdown]
# Heads are saved as one safetensors file; reading one executes nothing.

# %%
path = head.save("land cover")
assert (load_head(path).predict(emb) == classes).all()
