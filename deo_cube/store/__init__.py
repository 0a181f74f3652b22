"""Write embeddings to Zarr, open and check stores, export and publish them."""
