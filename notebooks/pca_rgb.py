# %% [markdown]
# # Embeddings as colours
# Three principal components as red, green and blue. A basis fitted once gives the same place the same colours in any
# window and at any date.

# %%
import matplotlib.pyplot as plt
import xarray as xr

import deo_cube
from deo_cube.heads.pca import PCA, fit_pca

ds = deo_cube.synthetic_cube(size=320, times=2, clouds=False, gaps=False)
emb = ds.deo.embed("tiny").load()
basis = fit_pca(emb)
rgb = emb.deo.pca_rgb(basis=basis)
rgb.sizes

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for ax, t in zip(axes, range(2), strict=True):
    rgb.isel(time=t).plot.imshow(ax=ax)
    ax.set(title=str(rgb.time.values[t])[:10])
    ax.set_axis_off()

# %% [markdown]
# A window of the same embeddings has the same colours, and a basis survives on disk.

# %%
basis.save("basis.json")
window = emb.isel(time=1, y=slice(10, 40), x=slice(20, 50))
again = window.deo.pca_rgb(basis=PCA.load("basis.json"))
xr.testing.assert_identical(again, rgb.isel(time=1, y=slice(10, 40), x=slice(20, 50)))
