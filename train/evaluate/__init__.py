"""Scores of frozen features by published protocols, with the untrained net and chance beside them.

`train.evaluate.run` is the entry; a protocol a file. This file stays light, for the command line reads `options`.
"""

from train.evaluate.options import EvalOptions

__all__ = ["EvalOptions"]
