"""A batch's similarities, soft targets and losses in torch."""
