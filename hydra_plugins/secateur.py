"""The launcher and the sweeper of this project. Hydra only knows plugins of this package."""

from orchestrator.sweep.launcher import RayShared
from orchestrator.sweep.search import Search

__all__ = ["RayShared", "Search"]
