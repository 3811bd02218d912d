"""Patch to network input: the one definition of resizing and normalisation.

The builder, the vehicle and the training evaluation all call `prepare`, so that a gallery and a
query can never be prepared differently.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import ImageError, ModelError

RESIZE = 'area_down_linear_up'


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its input.

    Parameters
    ----------
    input_height_px, input_width_px : int
        Size of the network input.
    mean, std : tuple of 3 float
        Per channel (red, green, blue), of values scaled to 0..1.
    resize : str
        Name of the resizing rule; only 'area_down_linear_up' exists: area averaging where the
        image shrinks (either side), bilinear where it grows.
    """

    input_height_px: int
    input_width_px: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize: str = RESIZE

    def __post_init__(self) -> None:
        for name in ('input_height_px', 'input_width_px'):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096:
                raise ModelError(
                    f'preprocessing: {name} is {value!r}; expected a whole number from 1 to 4096'
                )
        for name in ('mean', 'std'):
            values = getattr(self, name)
            if (
                not isinstance(values, tuple)
                or len(values) != 3
                or not all(map(_is_finite, values))
            ):
                raise ModelError(f'preprocessing: {name} is {values!r}; expected three numbers')
        if min(self.std) <= 0:
            raise ModelError(f'preprocessing: std is {self.std}; expected three positive numbers')
        if self.resize != RESIZE:
            raise ModelError(
                f'preprocessing: resize is {self.resize!r}, this version knows {RESIZE!r}; '
                'export the model again or update this package'
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        fields = asdict(self)
        return fields | {'mean': list(self.mean), 'std': list(self.std)}

    @classmethod
    def from_dict(cls, fields: Any) -> Preprocessing:
        """Make a `Preprocessing` from what `to_dict` returned.

        Raises
        ------
        ModelError
            If a key is missing or unknown, or a value impossible.
        """
        expected = set(cls.__dataclass_fields__)
        if not isinstance(fields, dict) or set(fields) != expected:
            found = sorted(map(str, fields)) if isinstance(fields, dict) else repr(fields)
            raise ModelError(
                f'preprocessing: found {found}, expected the keys {sorted(expected)}; '
                'export the model again'
            )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in fields.items()
        }
        return cls(**values)


def prepare(patches: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Resize and normalise patches.

    Parameters
    ----------
    patches : ndarray of uint8, shape (N, H, W, 3)
        RGB, any size; N may be 0.
    preprocessing : Preprocessing
        What the network expects.

    Returns
    -------
    ndarray of float32, shape (N, 3, input_height_px, input_width_px)
        C-contiguous.

    Raises
    ------
    ImageError
        If the dtype or the shape is another one.
    """
    check_patches(patches)
    height, width = preprocessing.input_height_px, preprocessing.input_width_px
    inputs = np.empty((len(patches), 3, height, width), np.float32)
    # (value / 255 - mean) / std as one multiplication and one addition per pixel.
    std = np.asarray(preprocessing.std, np.float32)
    gain = np.float32(1 / 255) / std
    offset = -np.asarray(preprocessing.mean, np.float32) / std
    for patch, target in zip(patches, inputs, strict=True):
        resized = resize(patch, preprocessing)
        target[...] = (resized * gain + offset).transpose(2, 0, 1)
    return inputs


def resize(patch: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Bring one patch, (H, W, 3), to the size of the network input by the resizing rule.

    A patch that has it already is returned as it is, so `prepare` of a resized patch equals
    `prepare` of the patch.
    """
    height, width = preprocessing.input_height_px, preprocessing.input_width_px
    if patch.shape[:2] == (height, width):
        return patch
    shrinks = patch.shape[0] > height or patch.shape[1] > width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(patch, (width, height), interpolation=interpolation), np.uint8)


def check_patches(patches: Any) -> None:
    """Raise ImageError unless `patches` is a uint8 array of shape (N, H, W, 3) with H, W >= 1."""
    if not isinstance(patches, np.ndarray):
        raise ImageError(
            f'patches are {type(patches).__name__}; expected a uint8 array (N, H, W, 3)'
        )
    if patches.dtype != np.uint8:
        raise ImageError(
            f'patches have dtype {patches.dtype}; expected uint8 RGB in 0..255, convert them first'
        )
    if patches.ndim != 4 or patches.shape[3] != 3 or 0 in patches.shape[1:]:
        hint = '; add a leading axis for a single image' if patches.ndim == 3 else ''
        raise ImageError(f'patches have shape {patches.shape}; expected (N, H, W, 3) RGB{hint}')


def _is_finite(value: Any) -> bool:
    # By comparison, since a whole number of JSON may be larger than any float.
    return isinstance(value, (int, float)) and abs(value) < 1e300
