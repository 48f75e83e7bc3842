"""Image encoders trained with X-CLR on a neighbour graph, next to SimCLR, SupCon and CLIP in one loop."""
