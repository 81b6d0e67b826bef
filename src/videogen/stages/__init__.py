"""Inference, one file per subsection of the paper: tensors and generators in, tensors out, nothing remembered."""
