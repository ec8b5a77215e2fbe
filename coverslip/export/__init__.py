"""Outward formats: QuPath GeoJSON, HDF5 of TRIDENT, CLAM and STAMP, Parquet."""
