"""The orientation that an image file states, whatever else its EXIF data hold."""

from __future__ import annotations

from PIL import ExifTags, Image


def orientation_of(image: Image.Image) -> int | None:
    """1 to 8, or another number that stands there; None without one, or where it cannot be read.

    None for TIFF too, as Pillow turns those by itself.
    """
    if image.format == "TIFF":
        return None
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow lets through what its EXIF reader meets in damaged bytes
        return None
    return value if isinstance(value, int) else None
