"""Branches: frontend, encoder, expander; and the graph that joins them."""
