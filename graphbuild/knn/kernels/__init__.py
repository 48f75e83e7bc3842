"""The inner loops of the search, in numba and in Triton."""
