"""Sources by the name of a published data set."""
