"""The launcher and the sweeper of this project. Hydra only knows plugins of this package."""

from orchestrator.sweeps.launcher import RayShared
from orchestrator.sweeps.search import Search

__all__ = ["RayShared", "Search"]
