"""`graphbuild report`: what was measured of a graph, as one HTML file and as metrics.json."""
