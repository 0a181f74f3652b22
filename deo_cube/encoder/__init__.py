"""Pixels to vectors: model cards, weights, networks."""
