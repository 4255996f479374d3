"""Photographs behind the shapes, and under the camera.

All from scikit-image; each is CC0, public domain or without known restrictions by its documentation.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from filmstrip.errors import FilmstripError

# Only photographs with detail everywhere, where every movement of the camera shows. NOTICE has their terms.
TRAIN_PHOTOS = (
    *("astronaut.png", "chelsea.png", "hubble_deep_field.jpg", "brick.png", "grass.png", "gravel.png"),
    *("coins.png", "ihc.png"),
)
TEST_PHOTOS = ("coffee.png", "camera.png")


def load_photos(names: tuple[str, ...]) -> list[np.ndarray]:
    """RGB arrays, uint8 (Y, X, 3). Raises `FilmstripError` when scikit-image is not installed."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise FilmstripError("photographic backgrounds come from scikit-image: pip install 'filmstrip[train]'")
    folder = Path(spec.origin).parent / "data"
    return [np.asarray(Image.open(folder / name).convert("RGB")) for name in names]
