"""Where a model's probability is lost: sums over a text, and what they say. Depends on torch and coding."""
