"""Inputs: what a loader worker does for one modality of a sample."""
