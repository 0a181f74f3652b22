# %% [markdown]
# # A class for every pixel
# `segment` draws on the cube's own grid: the head's probabilities, interpolated between patches. Polygons are labels as
# good as points; a convolutional decoder sees the neighbours too.

# %%
import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import odc.geo.xr  # noqa: F401
from matplotlib.colors import ListedColormap
from shapely.geometry import box

import deo_cube
from deo_cube.heads.head import fit_head
from deo_cube.heads.maps import segment

ds = deo_cube.synthetic_cube(size=320, times=1, clouds=False, gaps=False).load()
truth = ds["land_cover"]

# %% [markdown]
# Labels: the land cover as drawn, but of the left half only, in squares as someone might digitise. The right half
# tests.

# %%
water_or_not = (truth == 1) | (truth == 7)
squares, labels = [], []
rng = np.random.default_rng(1)
for wet in (True, False):
    rows, cols = np.nonzero((water_or_not.values == wet)[:, :150])
    for k in rng.integers(0, len(rows), 6):
        x, y = float(ds.x[cols[k]]), float(ds.y[rows[k]])
        squares.append(box(x - 40, y - 40, x + 40, y + 40))
        labels.append("wet" if wet else "dry")
table = gpd.GeoDataFrame({"label": labels}, geometry=squares, crs=ds.odc.crs)

# %%
emb = ds.deo.embed("tiny").compute()
head = fit_head("linear", emb, table)
drawn = segment(ds, head).isel(time=0).compute()
drawn.sizes

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
drawn.plot.imshow(ax=left, cmap=ListedColormap(head.classes.colors), vmin=-0.5, vmax=1.5)
table.boundary.plot(ax=left, color="k", linewidth=0.8)
water_or_not.plot.imshow(ax=right, cmap="Blues", add_colorbar=False)
left.set(title="drawn")
right.set(title="truth")

# %%
wet = head.classes.code_of("wet")
seen, true = drawn.values[:, 170:] == wet, water_or_not.values[:, 170:]
print(f"IoU of wet on the other half: {(seen & true).sum() / (seen | true).sum():.2f}; share of wet: {true.mean():.2f}")
assert set(np.unique(drawn)) <= {0, 1, 255}
