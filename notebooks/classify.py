# %% [markdown]
# # Twenty clicked points, a map
# Points with a label each, as tuples, a GeoDataFrame or GeoJSON; a head fitted in a second; classes and probabilities
# for the whole scene. A class that nobody clicked is on no map: here it is grey on the right.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

import deo_cube
from deo_cube.heads.head import fit_head, load_head

ds = deo_cube.synthetic_cube(size=320, times=1, clouds=False, gaps=False)
truth = ds["land_cover"].load()
names = dict(zip(truth.attrs["flag_values"].tolist(), truth.attrs["flag_meanings"].split(), strict=True))

rng = np.random.default_rng(0)
clicks = [(float(ds.x[c]), float(ds.y[r]), names[int(truth[r, c])]) for r, c in rng.integers(0, 320, (20, 2))]
clicks[:3]

# %%
start = time.perf_counter()
emb = ds.deo.embed("tiny").isel(time=0).compute()
head = fit_head("knn", emb, clicks)
classes = head.predict(emb)
print(f"{time.perf_counter() - start:.1f} s for {emb.sizes['y']} x {emb.sizes['x']} patches")
head.report

# %%
colours = dict.fromkeys(names.values(), "#dddddd") | dict(zip(head.classes.names, head.classes.colors, strict=True))
fig, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
for ax, drawn, title in zip(axes, (classes, truth), ("from 20 points", "land cover as drawn"), strict=True):
    said = dict(zip(drawn.attrs["flag_values"].tolist(), drawn.attrs["flag_meanings"].split(), strict=True))
    shown = ListedColormap([colours.get(said.get(code), "#ffffff") for code in range(max(said) + 1)])
    drawn.where(drawn != 255).plot.imshow(ax=ax, cmap=shown, vmin=-0.5, vmax=max(said) + 0.5, add_colorbar=False)
    ax.set(title=title, aspect="equal")
axes[0].scatter(*zip(*[(x, y) for x, y, _ in clicks], strict=True), c="k", s=6)
axes[1].legend(handles=[Patch(color=c, label=n) for n, c in colours.items()], bbox_to_anchor=(1, 1), loc="upper left")

# %% [markdown]
# Heads are saved as one safetensors file; reading one executes nothing.

# %%
path = head.save("land cover")
assert (load_head(path).predict(emb) == classes).all()
