"""Coverslip: a whole-slide pathology engine."""
