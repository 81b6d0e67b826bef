"""Parts of VideoGen on real video: temporal super-resolution (3.3) as `interpolate`, the video decoder (3.4) as `enhance`."""
