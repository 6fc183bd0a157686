"""How a trial sees its images: with their shape, or warped to a square."""

from __future__ import annotations

from dataclasses import dataclass

from detector.config.checks import require


@dataclass(frozen=True, slots=True)
class Data:
    """The images of a trial and their sizes.

    Attributes:
        fingerprint: hash of annotations and images of both splits; another data set makes another trial.
        short_side, max_long_side: size after resizing, aspect kept (paper: 800 and 1333).
        min_short_side: lower limit of the random short side of a training image, an integer up to
            `short_side` (Table 8: 640); None for always `short_side`.
        flip: probability of a horizontal flip in training.
        group_by_aspect: makes the images of a batch all landscape or all portrait, which saves padding.
        skip_unannotated: skips training images without an annotation of sides over 1 px (crowds count),
            as the authors' loader does.
        small_side, medium_side: sides, in original pixels, of the square areas that bound APS and APM
            (COCO: 32 and 96).
    """

    fingerprint: str
    short_side: int = 800
    max_long_side: int = 1333
    min_short_side: int | None = None
    flip: float = 0.5
    group_by_aspect: bool = False
    skip_unannotated: bool = False
    small_side: float = 32.0
    medium_side: float = 96.0

    def __post_init__(self) -> None:
        require(
            1 <= self.short_side <= self.max_long_side,
            f"need 1 <= short_side <= max_long_side, got {self.short_side} and {self.max_long_side}",
        )
        least = self.min_short_side
        require(
            least is None or 1 <= least <= self.short_side,
            f"min_short_side must be in 1..short_side ({self.short_side}) or None, got {least}",
        )
        require(0 <= self.flip <= 1, f"flip must be in 0..1, got {self.flip}")


@dataclass(frozen=True, slots=True)
class Augmentation:
    """SSD's augmentation of training images, with the numbers of the authors' script for VOC.

    An image is distorted, put on a larger canvas, and cropped; then it is warped to the square.

    Attributes:
        distortion: probability of each of the next four.
        brightness: largest amount added to or taken from all channels, of 255.
        contrast, saturation: largest change of the factor around 1.
        hue: largest turn of the hue circle, in degrees. The authors' 18 is in OpenCV's steps of 2 degrees.
        expansion: probability of a larger canvas.
        max_expansion: its sides are up to this many times the image's.
        fill: colour of the canvas (RGB): the mean that the detector subtracts.
        crop_ious: a crop is drawn for each of these: some object overlaps it with at least this IoU. One
            further crop needs any object at all, and the whole canvas is one more. All that are found are
            equally likely.
        crop_scale: smallest geometric mean of a crop's sides, in sides of the canvas; the largest is 1.
        crop_aspect: a crop is up to this many times as wide as high, or as high as wide, in sides of the
            canvas.
        crop_attempts: boxes drawn until one has the overlap.
    """

    distortion: float = 0.5
    brightness: float = 32.0
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 36.0
    expansion: float = 0.5
    max_expansion: float = 4.0
    fill: tuple[int, int, int] = (123, 117, 104)
    crop_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    crop_scale: float = 0.3
    crop_aspect: float = 2.0
    crop_attempts: int = 50

    def __post_init__(self) -> None:
        for name in ("distortion", "expansion", "contrast", "saturation"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must be in 0..1, got {value}")
        require(self.max_expansion >= 1, f"max_expansion must be >= 1, got {self.max_expansion}")
        require(0 < self.crop_scale <= 1, f"crop_scale must be in (0, 1], got {self.crop_scale}")
        require(self.crop_aspect >= 1, f"crop_aspect must be >= 1, got {self.crop_aspect}")
        require(self.crop_attempts >= 1, f"crop_attempts must be >= 1, got {self.crop_attempts}")


@dataclass(frozen=True, slots=True)
class SquareData:
    """The images of a trial, each warped to a square.

    Attributes:
        fingerprint: hash of annotations and images of both splits; another data set makes another trial.
        side: of the square, pixels.
        augmentation: of training images; None for the warped image.
        flip: probability of a horizontal flip in training.
        difficult: whether objects that VOC calls difficult are trained on.
        small_side, medium_side: as in `Data`.
    """

    fingerprint: str
    side: int
    augmentation: Augmentation | None = Augmentation()
    flip: float = 0.5
    difficult: bool = True
    small_side: float = 32.0
    medium_side: float = 96.0

    def __post_init__(self) -> None:
        require(self.side >= 1, f"side must be >= 1, got {self.side}")
        require(0 <= self.flip <= 1, f"flip must be in 0..1, got {self.flip}")


AnyData = Data | SquareData
