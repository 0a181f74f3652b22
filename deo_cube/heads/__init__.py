"""What people do with vectors: xarray in, xarray out."""
