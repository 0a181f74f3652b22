"""Map an encoder over a cube: tiles, windows, graph, device, lazy embeddings."""
