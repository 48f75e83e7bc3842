"""Data sources: captions or class names, and where their pictures are. `registry` opens one by its name."""
