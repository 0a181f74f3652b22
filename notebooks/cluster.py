# %% [markdown]
# # Land that looks alike, without labels
# Mini-batch k-means on the embeddings. The result is a categorical map with CF flags and colours.

# %%
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

import deo_cube
from deo_cube.heads.kmeans import fit_clusters

ds = deo_cube.synthetic_cube(size=320, times=1, clouds=False, gaps=False)
emb = ds.deo.embed("tiny").isel(time=0).load()
groups = emb.deo.cluster(6)
groups

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
colors = ListedColormap(groups.attrs["flag_colors"].split())
groups.plot.imshow(ax=left, cmap=colors, vmin=-0.5, vmax=5.5, cbar_kwargs={"ticks": range(6), "label": ""})
truth = ds["land_cover"]
names = dict(zip(truth.attrs["flag_values"].tolist(), truth.attrs["flag_meanings"].split(), strict=True))
legend = {"ticks": list(names), "format": lambda k, _: names[int(k)], "label": ""}
truth.plot.imshow(ax=right, cmap="tab10", levels=[k + 0.5 for k in range(len(names) + 1)], cbar_kwargs=legend)
for ax, title in ((left, "clusters"), (right, "land cover as drawn")):
    ax.set(title=title)
    ax.set_axis_off()

# %% [markdown]
# Clusters fitted once are used for any window: numbers and colours stay.

# %%
fitted = fit_clusters(emb, 6)
window = emb.isel(y=slice(5, 25), x=slice(5, 25))
assert (window.deo.cluster(clusters=fitted).values == groups.values[5:25, 5:25]).all()
