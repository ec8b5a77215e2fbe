"""Where tiles are, how they stream, and where they rest."""
