"""Reverse-mode differentiation: tensors, the table of derivatives, and the ops that users call."""

from . import ops
from .modes import detect_anomaly, no_grad
from .tensor import Tensor, apply
from .vjps import JOINT_VJPS, VJPS, defvjp, defvjp_joint

__all__ = ["JOINT_VJPS", "VJPS", "Tensor", "apply", "defvjp", "defvjp_joint", "detect_anomaly", "no_grad", "ops"]
