"""What finished runs are made into: exports, comparisons and reports."""
