"""How good a graph is, measured: `measure` is the way in."""
