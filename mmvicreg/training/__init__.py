"""Training: the loop and everything that decides its next step."""
