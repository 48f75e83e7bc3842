"""Whole recipes, from captions to a report. Nothing imports this package."""
