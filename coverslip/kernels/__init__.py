"""Arithmetic on pixels and labels: one name, several back ends, chosen by the array."""
