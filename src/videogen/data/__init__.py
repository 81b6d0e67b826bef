"""Clips to learn from: the data of section 4.1."""
