"""The verbs a worker performs on one accelerator: collect, score, solve, recover, evaluate, export. Knows no Ray, no Hydra, no W&B."""
