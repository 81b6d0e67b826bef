"""Parts of VideoGen on real video: temporal super-resolution (3.3) to interpolate, the video decoder (3.4) to enhance."""
