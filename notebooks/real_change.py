# %% [markdown]
# # Change in a real forest
# The western Harz in Germany lost much of its spruce to bark beetles after the dry summers of 2018 and 2019. Four
# Sentinel-2 images (L2A; July 2018, June 2019, June and July 2020) show where, without a label. `DEO_CUBE_DATA` names a
# folder with the images, `places/harz/*.tif`. Contains modified Copernicus Sentinel data 2018-2020.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr

import deo_cube

files = sorted((Path(os.environ["DEO_CUBE_DATA"]) / "places" / "harz").glob("*.tif"))
dates = pd.to_datetime([f.name[:8] for f in files])
ds = xr.concat([deo_cube.open_cube(f) for f in files], pd.Index(dates, name="time"))
emb = ds.deo.embed(units="dn", offset=0, nodata=0).compute()
dict(emb.sizes)

# %% [markdown]
# Distance alone has no threshold. Two images of one summer show what season and light do: they calibrate the distance
# from 2018 to 2020, and `level > 0.99` then has about 1 % false alarms.

# %%
plain = emb.deo.change("2018", "2020-07-30")
level = emb.deo.change("2018", "2020-07-30", method="calibrated", unchanged=[("2020-06-23", "2020-07-30")])
print(f"changed: {float((level > 0.99).mean()):.1%} of the area")

# %%
red, green, blue = ds.deo.match("tiny").indices[:3]
fig, axes = plt.subplots(1, 4, figsize=(15, 4.5), layout="constrained")
for ax, time in zip(axes, (0, 3), strict=False):
    image = ds.isel(time=time, band=[red, green, blue])
    (image / 1500).clip(0, 1).plot.imshow(ax=ax, rgb="band")
    ax.set(title=f"true colour, {dates[time]:%B %Y}")
plain.plot.imshow(ax=axes[2], cmap="magma", vmin=0, vmax=float(plain.quantile(0.99)), add_colorbar=False)
(level > 0.99).plot.imshow(ax=axes[3], cmap="gray_r", add_colorbar=False)
axes[2].set(title="cosine distance, 2018 to 2020")
axes[3].set(title="changed (1 % false alarms)")
for ax in axes:
    ax.set_axis_off()
    ax.set_aspect("equal")
