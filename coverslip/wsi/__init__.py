"""What a slide is: open, levels, pixel size, native tiles; formats and codecs."""
