"""Where the rows of a head come from, and what they give to the input embeddings."""
