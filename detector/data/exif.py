"""The EXIF orientation of an image file."""

from __future__ import annotations

from PIL import ExifTags, Image


def orientation_of(image: Image.Image) -> int | None:
    """The stored number, 1 to 8 if valid; None without one, or where it cannot be read.

    None for TIFF too, which Pillow turns itself.
    """
    if image.format == "TIFF":
        return None
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's EXIF reader may raise any exception on damaged bytes
        return None
    return value if isinstance(value, int) else None
