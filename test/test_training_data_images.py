"""Image files: whole ones are read as they are, others are errors that name the file."""

import io

import cv2
import numpy as np
import pytest
from photo_sets import picture, write

from bicrossnet_ros.errors import ImageError
from training.data.images import read_image


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize('suffix', ['png', 'bmp', 'tif', 'webp'])
def test_lossless_files_are_read_as_rgb(tmp_path, suffix):
    image = picture(1)
    if suffix == 'webp':
        ok, data = cv2.imencode('.webp', image[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101])
        assert ok
        (tmp_path / 'image.webp').write_bytes(data.tobytes())
    else:
        write(tmp_path / f'image.{suffix}', image)
    read = read_image(tmp_path / f'image.{suffix}')
    assert read.dtype == np.uint8
    assert np.array_equal(read, image)


def test_gray_images_get_three_equal_channels(tmp_path):
    cv2.imwrite(str(tmp_path / 'gray.png'), picture(1)[..., 0])
    assert np.array_equal(read_image(tmp_path / 'gray.png'), picture(1)[..., :1].repeat(3, 2))


def jpeg(image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode('.jpg', image[..., ::-1], list(options))[1].tobytes()


@pytest.mark.parametrize('progressive', [0, 1])
@pytest.mark.parametrize('share', [0.02, 0.3, 0.7, 0.99])
def test_a_truncated_jpeg_is_an_error_wherever_it_ends(tmp_path, progressive, share):
    data = jpeg(picture(2, size_px=128), cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    path = tmp_path / 'image.jpg'
    path.write_bytes(data)
    assert read_image(path).shape == (128, 128, 3)
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageError, match=r'image\.jpg: .*; replace or remove it'):
        read_image(path)


def test_the_end_of_a_thumbnail_is_not_the_end(tmp_path):
    thumbnail = jpeg(picture(3, size_px=16))
    block = b'\xff\xe1' + (2 + len(thumbnail)).to_bytes(2, 'big') + thumbnail
    data = jpeg(picture(2, size_px=128))
    data = data[:2] + block + data[2:]
    path = tmp_path / 'image.jpg'
    path.write_bytes(data)
    assert read_image(path).shape == (128, 128, 3)
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageError, match='cut off'):
        read_image(path)


def test_bytes_behind_the_end_do_no_harm(tmp_path):
    path = tmp_path / 'image.jpg'
    path.write_bytes(jpeg(picture(2)) + bytes(100))
    assert read_image(path).shape == (48, 48, 3)


@pytest.mark.parametrize('suffix', ['png', 'tif', 'bmp', 'webp'])
@pytest.mark.parametrize('share', [0.3, 0.8])
def test_other_truncated_files_are_errors(tmp_path, suffix, share):
    path = write(tmp_path / f'image.{suffix}', picture(2, size_px=128))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ImageError, match='replace or remove it'):
        read_image(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty; replace or remove it'),
        (b'these are words', 'not readable as an image; replace'),
        (b'\xff\xd8\xff\xda\xff\xd9', 'not readable as an image'),
    ],
)
def test_files_without_an_image(tmp_path, content, message):
    path = tmp_path / 'image.jpg'
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        read_image(path, at_least_px=32)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r'gone\.jpg: No such file'):
        read_image(tmp_path / 'gone.jpg')


@pytest.mark.parametrize(
    ('shape', 'wanted', 'expected'),
    [
        ((512, 512), 256, (256, 256)),
        ((511, 512), 256, (256, 256)),
        ((509, 512), 256, (509, 512)),
        ((512, 512), 224, (512, 512)),
        ((1024, 1100), 256, (256, 275)),
        ((1000, 1100), 224, (500, 550)),
        ((512, 512), 384, (512, 512)),
        ((200, 200), 256, (200, 200)),
        ((2048, 2048), 256, (256, 256)),
    ],
)
def test_reduced_decoding_leaves_the_size_or_twice_of_it(tmp_path, shape, wanted, expected):
    image = cv2.resize(picture(4), shape[::-1])
    path = tmp_path / 'image.jpg'
    path.write_bytes(jpeg(image))
    assert read_image(path, at_least_px=wanted).shape[:2] == expected
    assert read_image(path).shape[:2] == shape


def test_reduced_decoding_is_as_good_as_area_averaging(tmp_path):
    # As in photographs, every octave has the same contrast, and most of it is brightness.
    rng = np.random.default_rng(0)
    image = picture(4, size_px=512).astype(np.float32) / 2 + 64
    for side_px in (16, 32, 64, 128, 256, 512):
        octave = rng.normal(0, 12, (side_px, side_px, 1)) + rng.normal(0, 2, (side_px, side_px, 3))
        image += cv2.resize(octave.astype(np.float32), (512, 512), interpolation=cv2.INTER_CUBIC)
    image = np.clip(image, 0, 255).astype(np.uint8)
    path = tmp_path / 'image.jpg'
    path.write_bytes(jpeg(image, cv2.IMWRITE_JPEG_QUALITY, 90))
    whole = read_image(path)
    area = cv2.resize(whole, (256, 256), interpolation=cv2.INTER_AREA)
    bicubic = cv2.resize(whole, (256, 256), interpolation=cv2.INTER_CUBIC)
    reduced = read_image(path, at_least_px=256)
    assert psnr_db(reduced, area) > 40
    assert psnr_db(reduced, area) > psnr_db(bicubic, area) + 10


def test_exif_orientation_is_applied(tmp_path):
    pillow = pytest.importorskip('PIL.Image')
    image = pillow.fromarray(picture(5)[:32])
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', exif=exif)
    path = tmp_path / 'image.jpg'
    path.write_bytes(buffer.getvalue())
    assert read_image(path).shape == (48, 32, 3)
