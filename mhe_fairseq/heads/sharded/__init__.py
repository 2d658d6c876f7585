"""Heads whose table is split over ranks, and how the ranks exchange rows and sums."""
