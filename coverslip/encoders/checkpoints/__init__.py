"""Weights: where they come from, and how their tensors are called."""
