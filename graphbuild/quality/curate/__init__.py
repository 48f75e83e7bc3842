"""Curation by the stored graph, without embedding again: near-duplicates, representative samples, outliers."""
