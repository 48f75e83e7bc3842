"""`train compare`: evaluated runs in; means over seeds, 95 % intervals and significant differences out."""
