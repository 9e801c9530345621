"""Measurements of encoders, and the verdict that follows from them; the only room that knows triggers."""

from sanitize.evaluation.evaluator import EncoderEvaluator, Measurement
from sanitize.evaluation.judge import Policy, judge_purification
from sanitize.evaluation.probe import LinearProbe, knn_accuracy

__all__ = ["EncoderEvaluator", "LinearProbe", "Measurement", "Policy", "judge_purification", "knn_accuracy"]
