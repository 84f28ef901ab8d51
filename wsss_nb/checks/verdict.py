"""The answer of a check, and how a learner's function is compared with the right one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["Function", "Verdict", "judge"]

Function = Callable[..., Any]


@dataclass(frozen=True)
class Verdict:
    """Whether an exercise is solved, and a sentence about it."""

    ok: bool
    message: str

    def __bool__(self) -> bool:
        """True if solved."""
        return self.ok

    def __repr__(self) -> str:
        return ("✓ " if self.ok else "✗ ") + self.message


def judge(
    function: Function,
    arguments: tuple[Any, ...],
    expected: Any,
    slips: Mapping[str, Any],
    praise: str,
    tolerance: float = 1e-4,
) -> Verdict:
    """Call the function, compare with the expected value, else name the slip that gives the same result."""
    name = getattr(function, "__name__", "the function")
    try:
        answer = function(*(a.clone() if isinstance(a, Tensor) else a for a in arguments))
    except Exception as error:  # a learner's code may raise anything
        return Verdict(False, f"{name} stopped with {type(error).__name__}: {error}")
    if answer is None:
        return Verdict(False, f"{name} returns None: nothing is filled in yet")
    try:
        value = _array(answer)
    except (TypeError, ValueError, RuntimeError):
        return Verdict(False, f"{name}: expected a number or a tensor, got {type(answer).__name__}")
    target = _array(expected)
    if value.shape != target.shape:
        return Verdict(False, f"{name}: expected shape {target.shape}, got {value.shape}")
    if not np.isfinite(value).all():
        return Verdict(
            False, f"{name}: got {'nan' if np.isnan(value).any() else 'inf'}; is something divided by 0?"
        )
    if _close(value, target, tolerance):
        return Verdict(True, praise)
    for explanation, wrong in slips.items():
        other = _array(wrong)
        if other.shape == value.shape and _close(value, other, tolerance):
            return Verdict(False, f"{name}: {explanation}")
    worst = np.unravel_index(int(np.abs(value - target).argmax()), target.shape)
    where = f" at {tuple(int(i) for i in worst)}" if target.ndim else ""
    return Verdict(False, f"{name}: expected {target[worst]:.4g}{where}, got {value[worst]:.4g}")


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def _close(value: np.ndarray, target: np.ndarray, tolerance: float) -> bool:
    return bool(np.allclose(value, target, rtol=tolerance, atol=tolerance * 1e-2))
