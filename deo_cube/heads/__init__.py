"""Analyse embeddings: similarity, change, colours, clusters, and classification from labels. xarray in, xarray out."""
