"""Evaluation protocols, one a file."""
