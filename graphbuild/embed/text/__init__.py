"""From captions to unique texts."""
