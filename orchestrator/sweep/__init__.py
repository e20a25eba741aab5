"""Sweeps: what each point leaves, and one page and a few tables that compare the reports of many runs."""
