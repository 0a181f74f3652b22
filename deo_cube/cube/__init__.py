"""What comes in: names, units, nodata, CRS."""
