# %% [markdown]
# # Embed and look
# From a cube to vectors on the map: what fits, what it will cost, one block, all of it, and what came out. The scene
# is synthetic, so that this runs anywhere; your own cube goes through the same calls.

# %%
import matplotlib.pyplot as plt

import deo_cube

ds = deo_cube.synthetic_cube(size=512, times=2)
ds.deo

# %% [markdown]
# `ds.deo` reads no pixel: it says which bands, CRS and units were found, and which models can read the cube. `plan`
# counts before anything is paid for.

# %%
ds.deo.plan("tiny")

# %%
emb = ds.deo.embed("tiny")
emb.deo

# %% [markdown]
# Nothing has been read yet. Looking at one place runs the block that holds it, and no other; writing runs all of
# them, with a progress bar. Stopped at any moment, the same call goes on.

# %%
vector = emb.isel(time=0, x=10, y=20).compute()
print(vector.sizes, float(vector.valid), [round(float(v), 3) for v in vector[:4]])

# %%
stored = emb.deo.to_zarr("emb.zarr", overwrite=True)
assert deo_cube.verify_store("emb.zarr").complete

# %% [markdown]
# The scene, its embeddings as three colours, and how much of each patch was valid: clouds and gaps lower it, and a
# patch without one valid pixel has no vector.

# %%
first = stored.isel(time=0)
colour = ds[["B04", "B03", "B02"]].isel(time=0).to_dataarray("band") / 2500
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
colour.clip(0, 1).transpose("y", "x", "band").plot.imshow(ax=left)
first.deo.pca_rgb().plot.imshow(ax=middle)
first.valid.plot.imshow(ax=right, cmap="gray", vmin=0, vmax=1, cbar_kwargs={"label": ""})
for ax, title in ((left, "true colour"), (middle, "embeddings, PCA colours"), (right, "valid fraction")):
    ax.set(title=title)
    ax.set_axis_off()

# %% [markdown]
# The store is plain Zarr with coordinates, CRS and everything that was decided: any tool that reads Zarr 3 can open
# it.

# %%
import xarray as xr

plain = xr.open_zarr("emb.zarr", consolidated=False)
print(plain.embeddings.dims, plain.embeddings.shape, plain.embeddings.dtype)
print(deo_cube.open_embeddings("emb.zarr").attrs["deo_cube:radiometry"])
