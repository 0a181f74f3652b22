"""Open and load cubes, and read their bands, units, nodata, CRS, dates and masks."""
