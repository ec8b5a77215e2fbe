"""Tiles to vectors."""
