"""Measuring heads: time, memory, and how both grow with the vocabulary. Depends on torch and the heads."""
