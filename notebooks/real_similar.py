# %% [markdown]
# # Similar places in a real scene
# The lagoon of Marano on the Adriatic coast (Sentinel-2 L2A, 16 April 2019): its embeddings as colours, everything that
# looks like one place, and six groups, without a label. `DEO_CUBE_DATA` names a folder with the image,
# `scenes/aquileia_20190416_L2A.tif`; use any image of yours. Contains modified Copernicus Sentinel data 2019.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt

import deo_cube

data = Path(os.environ["DEO_CUBE_DATA"])
ds = deo_cube.open_cube(data / "scenes" / "aquileia_20190416_L2A.tif")
match = ds.deo.match("tiny")
print(match)

# %% [markdown]
# A GeoTIFF says neither its units nor its offset: pass them. This image is of 2019, before the offset was introduced.

# %%
emb = ds.deo.embed(units="dn", offset=0, nodata=0).compute()
print(dict(emb.sizes))

# %%
place = float(emb.x[215]), float(emb.y[58])  # a bare field
alike = emb.deo.similar(to=place)
groups = emb.deo.cluster(6).compute()

# %%
fig, axes = plt.subplots(2, 2, figsize=(12, 7.5), layout="constrained")
(ds.isel(band=list(match.indices[:3])) / 2500).clip(0, 1).plot.imshow(ax=axes[0, 0], rgb="band")
emb.deo.pca_rgb().plot.imshow(ax=axes[0, 1])
alike.plot.imshow(ax=axes[1, 0], vmin=-1, vmax=1, cmap="RdBu_r", cbar_kwargs={"label": ""})
axes[1, 0].plot(*place, "k+", markersize=12)
groups.where(groups != 255).plot.imshow(ax=axes[1, 1], cmap="tab10", vmin=-0.5, vmax=9.5, add_colorbar=False)
titles = ("true colour", "embeddings, PCA colours", "cosine similarity to +", "six groups")
for ax, title in zip(axes.flat, titles, strict=True):
    ax.set(title=title)
    ax.set_axis_off()
