"""Sweeps: points side by side, and searches. Hydra plugins."""
