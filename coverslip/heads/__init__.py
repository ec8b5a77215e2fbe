"""Tiles to nuclei, tissue maps and classes."""
