# %% [markdown]
# # Twenty clicked points, a map
# Points with a label each, as tuples, a GeoDataFrame or GeoJSON; a head fitted in a second; classes and probabilities
# for the whole scene.

# %%
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

import deo_cube

ds = deo_cube.synthetic_cube(size=320, times=1, clouds=False, gaps=False)
truth = ds["land_cover"].load()
names = dict(zip(truth.attrs["flag_values"].tolist(), truth.attrs["flag_meanings"].split(), strict=True))

# %% [markdown]
# The clicks are made up: four places of each of five classes, read off the land cover that the scene was drawn from.

# %%
rng = np.random.default_rng(0)
clicks = []
for code in (1, 2, 3, 4, 5):
    rows, cols = np.nonzero(truth.values == code)
    clicks += [(float(ds.x[cols[k]]), float(ds.y[rows[k]]), names[code]) for k in rng.integers(0, len(rows), 4)]
clicks[:3]

# %%
emb = ds.deo.embed("tiny").isel(time=0).compute()
head = deo_cube.fit_head("knn", emb, clicks)
classes = head.predict(emb)
head.report["cells"]

# %%
# The same colours for what was drawn; what has no label is white.
drawn = truth.copy(data=np.full(truth.shape, np.nan))
for code, name in names.items():
    if name in head.classes.names:
        drawn = drawn.where(truth != code, head.classes.code_of(name))

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
n = len(head.classes.names)
looks = {"cmap": ListedColormap(head.classes.colors), "vmin": -0.5, "vmax": n - 0.5}
legend = {"ticks": range(n), "format": lambda k, _: head.classes.names[int(k)], "label": ""}
classes.where(classes != 255).plot.imshow(ax=left, add_colorbar=False, **looks)
drawn.plot.imshow(ax=right, cbar_kwargs=legend, **looks)
left.scatter(*zip(*[(x, y) for x, y, _ in clicks], strict=True), c="k", s=6)
for ax, title in ((left, "from 20 points"), (right, "land cover as drawn")):
    ax.set(title=title)
    ax.set_axis_off()

# %% [markdown]
# How good is it? Count, beside what calling everything by its commonest class would score.

# %%
there = drawn.interp(x=classes.x, y=classes.y, method="nearest").where(emb.valid > 0)
right_on = float((classes == there).sum() / there.notnull().sum())
commonest = max(float((there == k).sum() / there.notnull().sum()) for k in range(n))
print(f"right on {right_on:.0%} of the patches with one of these classes; the commonest class: {commonest:.0%}")

# %% [markdown]
# Heads are saved as one safetensors file; reading one executes nothing.

# %%
path = head.save("land cover")
assert (deo_cube.load_head(path).predict(emb) == classes).all()
