"""Makes galleries from georeferenced maps. Runs on the ground; needs rasterio."""
