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

ds = deo_cube.synthetic_cube(size=320, times=1, clouds=False, gaps=False).load()
truth = ds["land_cover"]

# %% [markdown]
# Labels: the land cover as drawn, but of the left half only, in squares as someone might digitise. The right half
# tests.

# %%
forest = truth == 2
squares, labels = [], []
rng = np.random.default_rng(1)
for wooded in (True, False):
    rows, cols = np.nonzero((forest.values == wooded)[:, :150])
    for k in rng.integers(0, len(rows), 6):
        x, y = float(ds.x[cols[k]]), float(ds.y[rows[k]])
        squares.append(box(x - 40, y - 40, x + 40, y + 40))
        labels.append("forest" if wooded else "open")
table = gpd.GeoDataFrame({"label": labels}, geometry=squares, crs=ds.odc.crs)

# %%
emb = ds.deo.embed("tiny").compute()
head = deo_cube.fit_head("linear", emb, table)
drawn = ds.deo.segment(head).isel(time=0).compute()
drawn.sizes

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
wood = head.classes.code_of("forest")
green = ListedColormap(["#efeadd", "#1b7837"])
(drawn == wood).plot.imshow(ax=left, cmap=green, add_colorbar=False)
table.boundary.plot(ax=left, color="k", linewidth=0.8)
forest.plot.imshow(ax=right, cmap=green, add_colorbar=False)
for ax, title in ((left, "forest, from twelve squares"), (right, "forest as drawn")):
    ax.set(title=title)
    ax.set_axis_off()

# %%
seen, true = drawn.values[:, 170:] == wood, forest.values[:, 170:]
iou = (seen & true).sum() / (seen | true).sum()
print(f"IoU on the other half: {iou:.2f}; of calling all of it forest: {true.mean():.2f}")
assert set(np.unique(drawn)) <= {0, 1, 255}
