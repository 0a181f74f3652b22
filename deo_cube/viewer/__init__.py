"""The viewer: one local page over a store of embeddings. `deo-cube view STORE`, `emb.deo.explore()`."""
