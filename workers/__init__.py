"""The verbs that a worker performs on one accelerator. Nothing here imports Ray, Hydra or W&B."""
