"""Exact nearest neighbours of every text, and a small sketch of each: `stage` is the way in."""
