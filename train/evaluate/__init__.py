"""Scores of frozen features: kNN and linear probe, on any label column, with the untrained net and chance beside them."""

from train.evaluate.run import EVAL_FILE, EvalResult, evaluate_run
from train.evaluate.scores import evaluate_features

__all__ = ["EVAL_FILE", "EvalResult", "evaluate_features", "evaluate_run"]
