"""Many slides at once: search over the stores of an output folder."""
