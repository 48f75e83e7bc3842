"""Exact caption-similarity graphs: captions in, a directory of embeddings and nearest neighbours out.

Importing this package loads nothing heavy; each command loads what it needs.
"""

__version__ = "0.1.0"
