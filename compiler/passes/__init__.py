"""Plan passes, one a file."""
