"""Sentinel-2 data cubes in, foundation-model embeddings out."""
