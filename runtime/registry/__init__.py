"""Tracking of runs and the model registry."""
