# %% [markdown]
# # Where else looks like this?
# One point in, a map of similarity out. The scene is synthetic (drawn by `synthetic_cube`), so that this runs anywhere;
# any Sentinel-2 cube takes its place.

# %%
import matplotlib.pyplot as plt
import numpy as np

import deo_cube

ds = deo_cube.synthetic_cube(size=320, times=1, clouds=False, gaps=False)
emb = ds.deo.embed("tiny").isel(time=0)
emb

# %% [markdown]
# A point in the CRS of the cube: here a place on the water. The result is lazy until it is drawn.

# %%
water = ds["land_cover"].values == 1
row, col = np.argwhere(water)[water.sum() // 2]
place = float(ds.x[col]), float(ds.y[row])
s = emb.deo.similar(to=place).compute()

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
rgb = ds[["B04", "B03", "B02"]].isel(time=0).to_array("band").clip(0, 2000) / 2000
rgb.plot.imshow(ax=left)
s.plot.imshow(ax=right, cmap="magma", cbar_kwargs={"label": ""})
for ax, title in ((left, "true colour"), (right, "cosine similarity to +")):
    ax.plot(*place, "c+", markersize=12)
    ax.set(title=title)
    ax.set_axis_off()

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
