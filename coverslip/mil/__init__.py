"""Bags of vectors -> slides and patients: models, tasks, training, metrics, survival.

Knows arrays and tensors: no slide, no store, no file of another program.
"""
