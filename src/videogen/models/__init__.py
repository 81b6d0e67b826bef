"""Networks of VideoGen: tensors in, tensors out; no files, no loops (sections 3.2-3.4)."""
