"""Graphs out and in: other formats, edges from elsewhere, and parts of a graph."""
