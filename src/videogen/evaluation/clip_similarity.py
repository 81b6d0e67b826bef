"""CLIPSIM (section 4.1; Wu et al. 2021, GODIVA, arXiv 2104.14806), a pure function of CLIP features.

The mean over frames, then over videos, of the cosine between a frame's and its prompt's features; not scaled by 100.
"""

from __future__ import annotations

import numpy as np

from videogen.config import UserError


def clip_similarity(image_features: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    """Frames (N, F, D) and prompts (N, D) -> (N,) in -1..1. Features need not have length 1. float64.

    Raises UserError where a feature is zero or not finite.
    """
    images = np.asarray(image_features, np.float64)
    texts = np.asarray(text_features, np.float64)
    if images.ndim != 3 or texts.shape != (images.shape[0], images.shape[2]):
        raise ValueError(f"features must be (N, F, D) and (N, D), not {images.shape} and {texts.shape}")
    cosines: np.ndarray = np.einsum("nfd,nd->nf", unit_length(images), unit_length(texts)).mean(1)
    return cosines


def unit_length(features: np.ndarray) -> np.ndarray:
    """Features (..., D) at length 1. Raises UserError where that cannot be."""
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise UserError("CLIP returned features that are zero or not finite: are its weights whole?")
    scaled: np.ndarray = features / lengths
    return scaled
