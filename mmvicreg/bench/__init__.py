"""What things cost: one module a comparison, each a function that measures and one that lays out a table."""
