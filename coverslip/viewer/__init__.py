"""Looking: a local web server of slides, of what was found on them, and its page."""
