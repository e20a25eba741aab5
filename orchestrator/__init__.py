"""The driver: configuration, plan, pipeline, store, clusters, tracking, report."""
