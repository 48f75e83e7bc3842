"""Graphs of metadata: columns in, one kernel for each, neighbours by their mean or product out."""
