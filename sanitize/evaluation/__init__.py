"""Measurements of networks, and the verdict that follows from them; the only room that knows triggers."""

from sanitize.evaluation.classifiers import ClassifierEvaluator
from sanitize.evaluation.encoders import EncoderEvaluator
from sanitize.evaluation.evaluator import Evaluator, Measurement
from sanitize.evaluation.judge import judge_purification, judge_scan
from sanitize.evaluation.probe import LinearProbe, knn_accuracy
from sanitize.policies import Policy

__all__ = [
    "ClassifierEvaluator",
    "EncoderEvaluator",
    "Evaluator",
    "LinearProbe",
    "Measurement",
    "Policy",
    "judge_purification",
    "judge_scan",
    "knn_accuracy",
]
