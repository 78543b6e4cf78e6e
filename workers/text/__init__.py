"""Text generation: models, what chooses their tokens, and the loop that joins them."""
