"""Training of every network by one loop (section 3.5)."""
