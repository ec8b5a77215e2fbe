"""Where the rooms meet: stages, journal, resume, report."""
