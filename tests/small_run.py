"""Settings of profile quick for runs that take seconds."""

from collections.abc import Iterable


def small_stages(stages: Iterable[str], batch_size: int) -> dict[str, str]:
    """One epoch of each stage on views of 48 pixels, as fields and texts."""
    values = {"epochs": "1", "batch_size": str(batch_size), "views.sizes": "[[48,48]]"}
    return {f"{stage}.{name}": value for stage in stages for name, value in values.items()}
