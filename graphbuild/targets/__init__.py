"""A batch's similarities and soft targets in NumPy and numba (the reference), and which samples form a batch."""
