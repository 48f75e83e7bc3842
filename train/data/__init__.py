"""Images by source, and their views. `sources` opens what --data names."""
