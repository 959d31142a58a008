"""Loads a bundle, predicts and serves. Needs neither the optimiser nor a trainer, and only what its backend needs."""

from bt_compiler.runtime.inputs import InputError
from bt_compiler.runtime.outputs import Outputs
from bt_compiler.runtime.predictor import PredictionError, Predictor, load

__all__ = ["InputError", "Outputs", "PredictionError", "Predictor", "load"]
