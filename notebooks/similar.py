# %% [markdown]
# # Where else looks like this?
# One point in, a map of similarity out. The scene is synthetic (drawn by `synthetic_cube`), so that this runs anywhere;
# any Sentinel-2 cube takes its place.

# %%
import matplotlib.pyplot as plt
import numpy as np

import deo_cube
from deo_cube.heads.similar import similar

ds = deo_cube.synthetic_cube(size=320, times=1, clouds=False, gaps=False)
emb = ds.deo.embed("tiny").isel(time=0)
emb

# %% [markdown]
# A point in the CRS of the cube: here a place in the largest pond. The result is lazy until it is drawn.

# %%
water = ds["land_cover"].values == 1
row, col = np.argwhere(water)[water.sum() // 2]
pond = float(ds.x[col]), float(ds.y[row])
s = similar(emb, to=pond).compute()

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
rgb = ds[["B04", "B03", "B02"]].isel(time=0).to_array("band").clip(0, 2000) / 2000
rgb.plot.imshow(ax=left)
s.plot.imshow(ax=right, cmap="magma")
for ax in (left, right):
    ax.plot(*pond, "c+", markersize=12)
    ax.set(title="", xlabel="", ylabel="")

# %% [markdown]
# How good is that? Patches of water against the others, by the truth that the scene was drawn from: the share of pairs
# (water, other) in which water is the more similar.

# %%
stride = ds.sizes["y"] // s.sizes["y"]
share = (
    water[: s.sizes["y"] * stride, : s.sizes["x"] * stride].reshape(s.sizes["y"], stride, -1, stride).mean(axis=(1, 3))
)
wet, dry = s.values[share > 0.8], s.values[share == 0]
auc = (wet[:, None] > dry[None]).mean()
print(f"{auc:.2f} of pairs in order")
assert auc > 0.6
