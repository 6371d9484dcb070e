"""From an image to the numbers a network was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Any

import numpy as np
import torch
from PIL import Image

from tweaknn.errors import InputError
from tweaknn.inputs.userfile import load_function

LARGEST_SIDE = 16_384  # a slip of the keyboard in --size must not take the machine's memory
_PIL_MODE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


@dataclass(frozen=True)
class Preprocess:
    """``(x / 255 - mean) / std`` after an optional resize and central crop.

    ``resize`` is the length the shorter side gets (int) or the ``(height, width)`` both sides get; ``crop`` the
    ``(height, width)`` then cut from the middle, zero-padded where the image is smaller. ``channels`` is 1 (grey), 3
    (RGB) or None (as the image is: grey images keep one channel when every image is grey). ``mean`` and ``std`` are
    fractions of full scale, as torchvision and timm give them.

    Raises:
        InputError: a mean or spread that is not finite or positive, or an interpolation that is not known.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"
    channels: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and (len(value) not in (1, 2, 3, 4) and self.channels is not None):
                raise InputError(f"--{name} needs one value a channel, not {len(value)}.")
            if value is not None and not np.isfinite(value).all():
                raise InputError(f"--{name} must be finite numbers, not {value}.")
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"--std must be positive, not {self.std}.")
        if self.interpolation not in _PIL_MODE:
            raise InputError(f"interpolation must be one of {', '.join(_PIL_MODE)}, not '{self.interpolation}'.")

    def pixels(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """Decoded image as uint8 ``(height, width, channels)``, resized and cropped."""
        if isinstance(image, np.ndarray):
            if self.resize is None and self.crop is None:
                return _array_channels(image, self.channels)
            image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)
        mode = {1: "L", 3: "RGB", 4: "RGBA", None: "L" if image.mode in ("1", "L") else "RGB"}[self.channels]
        if image.mode.startswith("I;16") or image.mode == "I":
            # 16-bit grey: PIL clips at 255 when converting, which would make such images white.
            image = Image.fromarray(
                (np.asarray(image).astype(np.float64) / 257.0).round().clip(0, 255).astype(np.uint8)
            )
        if image.mode != mode:
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert(mode)
        image = self._resized(image)
        if self.crop is not None:
            image = _centre_crop(image, self.crop)
        array = np.asarray(image)
        return array[..., None] if array.ndim == 2 else array

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.resize is None:
            return image
        width, height = image.size
        if isinstance(self.resize, int):
            # As torchvision rounds: the longer side is truncated.
            short, long = min(width, height), max(width, height)
            to_long = int(self.resize * long / short)
            size = (self.resize, to_long) if width <= height else (to_long, self.resize)
        else:
            size = (self.resize[1], self.resize[0])
        if size == image.size:
            return image
        return image.resize(size, Image.Resampling(_PIL_MODE[self.interpolation]))

    def widen(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``(n, h, w[, c])`` to ``(n, h, w, channels)``, repeating a grey channel where three are
        wanted."""
        images = images[..., None] if images.ndim == 3 else images
        if self.channels is None or images.shape[-1] == self.channels:
            return images
        return np.repeat(images, self.channels, axis=-1)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 ``(n, height, width, channels)`` to float32 ``(n, channels, height, width)``."""
        x = pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
        return self._shift(x, (1, -1, 1, 1))

    def normalise_table(self, rows: torch.Tensor) -> torch.Tensor:
        """Numbers ``(n, f)`` or ``(n, channels, ...)``: ``(x - mean) / std`` with one value, or one a column or
        channel; not divided by 255."""
        return self._shift(rows.to(torch.float32), (1, -1) + (1,) * max(0, rows.dim() - 2))

    def _shift(self, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        for name, value, apply in (("mean", self.mean, torch.sub), ("std", self.std, torch.div)):
            if value is None:
                continue
            if len(value) not in (1, x.shape[1]):
                raise InputError(
                    f"--{name} has {len(value)} values but the examples have {x.shape[1]} channels; "
                    f"give one value or one a channel."
                )
            x = apply(x, torch.tensor(value, dtype=x.dtype, device=x.device).reshape(shape))
        return x

    def __call__(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        """One image to a float32 tensor ``(channels, height, width)``."""
        return self.normalise(torch.from_numpy(np.array(self.pixels(image)))[None])[0]

    def describe(self) -> str:
        """One phrase for people and for a delta's metadata."""
        parts = []
        if self.resize is not None:
            parts.append(f"resize {self.resize} ({self.interpolation})")
        if self.crop is not None:
            parts.append(f"central crop {self.crop[0]}x{self.crop[1]}")
        if self.mean is None and self.std is None:
            parts.append("x/255")
        else:
            parts.append(f"(x/255 - {_short(self.mean or (0.0,))}) / {_short(self.std or (1.0,))}")
        return ", ".join(parts)


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"


def _array_channels(array: np.ndarray, channels: int | None) -> np.ndarray:
    image = array[..., None] if array.ndim == 2 else array
    if channels is None or image.shape[-1] == channels:
        return image
    if image.shape[-1] == 1:
        return np.repeat(image, channels, axis=-1)
    if channels == 1:
        return np.asarray(Image.fromarray(np.ascontiguousarray(image[..., :3])).convert("L"))[..., None]
    return image


def _centre_crop(image: Image.Image, crop: tuple[int, int]) -> Image.Image:
    height, width = crop
    left = round((image.width - width) / 2.0)
    top = round((image.height - height) / 2.0)
    if image.width < width or image.height < height:
        # As torchvision: pad with zeros first, half of it (rounded down) on the left and top.
        pad_x, pad_y = max(width - image.width, 0), max(height - image.height, 0)
        padded = Image.new(image.mode, (image.width + pad_x, image.height + pad_y))
        padded.paste(image, (pad_x // 2, pad_y // 2))
        image = padded
        left, top = round((image.width - width) / 2.0), round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))


def of_torchvision(transform: Any) -> Preprocess | Callable[[Any], torch.Tensor]:
    """What ``weights.transforms()`` says, as a :class:`Preprocess` where it is a plain classification
    preset."""
    try:
        size = list(transform.resize_size) if transform.resize_size is not None else None
        crop = list(transform.crop_size)
        return Preprocess(
            resize=None if size is None else size[0] if len(size) == 1 else (size[0], size[1]),
            crop=(crop[0], crop[-1]),
            mean=tuple(transform.mean),
            std=tuple(transform.std),
            interpolation=transform.interpolation.value,
            channels=3,
            note="preprocessing is what torchvision says of these weights",
        )
    except AttributeError:
        return transform


def of_timm(config: dict[str, Any]) -> Preprocess:
    """What ``timm.data.resolve_model_data_config`` says, with timm's evaluation transform (resize,
    central crop)."""
    channels, height, width = config["input_size"]
    fraction = config.get("crop_pct") or 1.0
    squash = config.get("crop_mode") == "squash"
    resize: int | tuple[int, int]
    if squash or height != width:
        resize = (floor(height / fraction), floor(width / fraction))
    else:
        resize = floor(height / fraction)
    interpolation = config.get("interpolation", "bicubic")
    return Preprocess(
        resize=resize,
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=interpolation if interpolation in _PIL_MODE else "bilinear",
        channels=channels,
        note="preprocessing is what timm says of this model",
    )


def resolve_preprocess(
    model: Preprocess | Callable[[Any], torch.Tensor] | None = None,
    *,
    function: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: Sequence[int] | int | None = None,
) -> tuple[Preprocess | Callable[[Any], torch.Tensor], str]:
    """The preprocessing to use and a sentence saying where it came from.

    ``model`` is what the network itself says (:attr:`LoadedModel.preprocess`); ``function``
    (``file.py:function``,
    PIL image or array to tensor) replaces it; ``mean``, ``std`` and ``size`` (one side, or height and
    width; the
    shorter side is resized to it and the middle cut out) override its parts.

    Raises :class:`~tweaknn.errors.InputError` when both a function and numbers are given, or numbers are
    unusable.
    """
    numbers = mean is not None or std is not None or size is not None
    if function is not None:
        if numbers:
            raise InputError("give either --preprocess or --mean/--std/--size, not both.")
        return load_function(function), f"preprocessing is {function}"
    base = model if model is not None else Preprocess()
    if not isinstance(base, Preprocess):
        if numbers:
            base = Preprocess()
        else:
            return base, "preprocessing is what the model's library says"
    if not numbers:
        return base, base.note or f"no preprocessing was given: {base.describe()} is used"
    changes: dict[str, Any] = {"note": ""}
    if mean is not None:
        changes["mean"] = tuple(float(v) for v in mean)
    if std is not None:
        changes["std"] = tuple(float(v) for v in std)
    if size is not None:
        side = [int(size)] if isinstance(size, int) else [int(v) for v in size]
        if len(side) not in (1, 2) or min(side) < 1:
            raise InputError(f"--size must be one or two positive numbers (height, width), not {size}.")
        if max(side) > LARGEST_SIDE:
            raise InputError(f"--size is in pixels and at most {LARGEST_SIDE}, not {max(side)}.")
        changes["resize"] = side[0] if len(side) == 1 else (side[0], side[1])
        changes["crop"] = (side[0], side[-1])
    result = replace(base, **changes)
    return result, f"preprocessing is {result.describe()}"
