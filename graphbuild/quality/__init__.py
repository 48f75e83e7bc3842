"""What a graph is worth: looked at, verified, measured, compared and reported."""
