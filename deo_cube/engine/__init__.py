"""Cube to lazy embeddings to Zarr: tiles, graph, runtime, store."""
