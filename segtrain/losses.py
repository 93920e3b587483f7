"""Consistency losses between two predictions of the same image, teacher and student."""

import math
from typing import Any, Literal, get_args

import torch
from torch.nn import functional

from pipeline.errors import UserError

Kind = Literal["mse", "kl"]


def require_kind(kind: str) -> None:
    """Raise `UserError` unless `kind` is one of `Kind`."""
    if kind not in get_args(Kind):
        raise UserError(f"consistency {kind}: expected one of {', '.join(get_args(Kind))}")


def require_branch(settings: Any, name: str) -> None:
    """Raise `UserError` unless the settings of a second branch are within their ranges."""
    require_kind(settings.kind)
    for key, low, high in (
        ("probability", 0, 1),
        ("weight", 0, math.inf),
        ("temperature", 1e-6, math.inf),
    ):
        value = getattr(settings, key)
        if not isinstance(value, int | float) or not low <= value <= high or value == math.inf:
            most = f" and at most {high}" if high < math.inf else ""
            raise UserError(f"{name}.{key} {value!r}: must be {low:g} or more{most}")


def consistency(
    student: torch.Tensor,
    teacher: torch.Tensor,
    kind: Kind = "kl",
    *,
    temperature: float = 1.0,
    stop_gradient: bool = True,
) -> torch.Tensor:
    """Return the divergence of logits BxKxHxW from the teacher's, a mean over pixels.

    "mse": of the logits (DIFF); "kl": T^2 KL(teacher || student) of the probabilities at
    temperature T (Hinton et al., 2015). `stop_gradient`: the teacher does not learn.
    """
    require_kind(kind)
    if stop_gradient:
        teacher = teacher.detach()
    if kind == "mse":
        return functional.mse_loss(student, teacher)
    logs = [(logits / temperature).log_softmax(1) for logits in (student, teacher)]
    return temperature**2 * divergence(logs[1], logs[0])


def divergence(of: torch.Tensor, from_: torch.Tensor) -> torch.Tensor:
    """Return KL(of || from) of log-probabilities BxKxHxW, a mean over pixels."""
    return (of.exp() * (of - from_)).sum(1).mean()
