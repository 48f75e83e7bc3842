"""The training loop and what it keeps: trainer, objectives, processes, checkpoints, the run folder."""
