# %% [markdown]
# # Land that looks alike, without labels
# Mini-batch k-means on the embeddings. The result is a categorical map with CF flags and colours.

# %%
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

import deo_cube
from deo_cube.heads.cluster import cluster, fit_clusters

ds = deo_cube.synthetic_cube(size=320, times=1, clouds=False, gaps=False)
emb = ds.deo.embed("tiny").isel(time=0).load()
groups = cluster(emb, 6)
groups

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
colors = ListedColormap(groups.attrs["flag_colors"].split())
groups.plot.imshow(ax=left, cmap=colors, vmin=-0.5, vmax=5.5)
ds["land_cover"].plot.imshow(ax=right, cmap="tab10")
left.set(title="clusters")
right.set(title="land cover as drawn")

# %% [markdown]
# Clusters fitted once are used for any window: numbers and colours stay.

# %%
fitted = fit_clusters(emb, 6)
window = emb.isel(y=slice(5, 25), x=slice(5, 25))
assert (cluster(window, clusters=fitted).values == groups.values[5:25, 5:25]).all()
