"""Prunes large vision models: ``python -m orchestrator``, or ``from orchestrator import prune``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import Pruned, plan, prune
    from workers.training.hold import hold_masks

__all__ = ["Pruned", "hold_masks", "plan", "prune"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for, so that the command line starts without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orchestrator import api
    from workers.training import hold

    return getattr(hold if name == "hold_masks" else api, name)
