"""Sources by the format of their files."""
