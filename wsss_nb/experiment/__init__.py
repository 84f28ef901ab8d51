"""Profiles, the notebook runner and provenance: what turns the library into an experiment.

Nothing is imported here on purpose: the code version of a stage follows imports through this file.
"""

from __future__ import annotations

__all__: list[str] = []
