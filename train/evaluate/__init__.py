"""Scores of frozen features by published protocols, with the untrained net and chance beside them. `run` is the way in."""
