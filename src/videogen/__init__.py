"""VideoGen: text to video guided by a reference image (arXiv 2309.00398).

The public names are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videogen.models.ifrnet import IFRNet
    from videogen.models.unet import VideoUNet
    from videogen.models.video_decoder import VideoDecoder
    from videogen.pipeline import VideoGenPipeline
    from videogen.video import Video, read_video, write_video

__version__ = "0.1.0"
__all__ = [
    "IFRNet",
    "Video",
    "VideoDecoder",
    "VideoGenPipeline",
    "VideoUNet",
    "__version__",
    "read_video",
    "write_video",
]

_HOMES = {
    "VideoGenPipeline": "videogen.pipeline",
    "Video": "videogen.video",
    "read_video": "videogen.video",
    "write_video": "videogen.video",
    "VideoUNet": "videogen.models.unet",
    "VideoDecoder": "videogen.models.video_decoder",
    "IFRNet": "videogen.models.ifrnet",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
