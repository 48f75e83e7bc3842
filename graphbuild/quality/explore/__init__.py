"""A map of a graph's texts to walk around in: positions, labels and figures for embedding-atlas. `write` is the way in."""
