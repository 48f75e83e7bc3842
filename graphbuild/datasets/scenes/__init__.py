"""Drawn pictures with captions that name what is on them: the synthetic data of the demo."""
