"""Pure functions that measure embeddings: ranks and recall, accuracy, spectrum."""
