"""How to judge a run: one module a protocol, and the paper's tables as data in ``paper/``."""
