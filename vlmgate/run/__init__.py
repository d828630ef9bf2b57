"""Run the line over a folder, from the images to the result; start with `loop.scan`."""
