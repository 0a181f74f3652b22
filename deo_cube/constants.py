"""Facts about Sentinel-2 and about stored embeddings that several packages share."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "Attribute",
    "DTYPES",
    "INT8_INVALID",
    "MODEL_BANDS",
    "OPENVINO_CONVERSION",
    "PRECISIONS",
    "PREFIX",
    "RUNTIMES",
    "SCL_CLASSES",
    "SCL_INVALID",
    "SENTINEL2_STATISTICS",
    "TCI_SCALE",
    "TCI_WHITE",
    "WAVELENGTH_BANDS",
]

#: The ten bands in the order of the models: red, green and blue first.
MODEL_BANDS = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
#: The same bands in the order of Sentinel-2's band numbers.
WAVELENGTH_BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")

#: Version of what this package changes in networks that OpenVINO converts. It may change the last digits of vectors,
#: and so is part of what a store is.
OPENVINO_CONVERSION = 3

#: DN at which 8-bit true-colour images (visual, TCI, EuroSAT) are white.
TCI_WHITE = 2750.0
#: DN per step of such an image. The stretch clips brighter values, so this is its inverse only below `TCI_WHITE`.
TCI_SCALE = TCI_WHITE / 255.0

#: Mean and standard deviation of DN over fMoW-Sentinel: the table `normalize_s2` of the published code
#: (augmentations.py:277-311).
SENTINEL2_STATISTICS: Mapping[str, tuple[float, float]] = {
    "B04": (1136.260, 965.231),
    "B03": (1120.771, 712.125),
    "B02": (1184.382, 650.284),
    "B05": (1263.739, 948.982),
    "B06": (1645.403, 1108.067),
    "B07": (1846.870, 1258.364),
    "B08": (1762.595, 1233.149),
    "B8A": (1972.624, 1364.387),
    "B11": (1732.164, 1310.370),
    "B12": (1247.919, 1087.602),
}

#: Classes of the scene classification of L2A products, by number.
SCL_CLASSES = (
    *("no_data", "saturated_or_defective", "dark_area_pixels", "cloud_shadows", "vegetation", "not_vegetated"),
    *("water", "unclassified", "cloud_medium_probability", "cloud_high_probability", "thin_cirrus", "snow"),
)
#: Classes whose pixels do not show the ground: no data, saturated, cloud shadow, clouds and cirrus.
SCL_INVALID = (0, 1, 3, 8, 9, 10)

#: Dtypes of embeddings.
DTYPES = ("float16", "float32", "int8")
#: Number formats of a network's matrix products.
PRECISIONS = ("float32", "bfloat16")
#: Libraries that run networks, and "auto", which chooses one.
RUNTIMES = ("torch", "openvino", "auto")
#: Value of int8 embeddings in patches without a valid pixel, where floats hold NaN.
INT8_INVALID = -128
#: Start of the names of the attributes that this package writes.
PREFIX = "deo_cube:"


class Attribute:
    """Names of the attributes that this package writes on cubes, embeddings, maps and STAC items."""

    AGGREGATE = "deo_cube:aggregate"
    BANDS = "deo_cube:bands"
    BLOCKS = "deo_cube:blocks"
    CARD = "deo_cube:card"
    COMPOSITE = "deo_cube:composite"
    DERIVED = "deo_cube:derived"
    DTYPE = "deo_cube:dtype"
    FINGERPRINT = "deo_cube:fingerprint"
    FORMAT = "deo_cube:format"
    FROM_FILE = "deo_cube:from_file"
    GENERATION = "deo_cube:generation"
    GSD = "deo_cube:gsd"
    HEAD = "deo_cube:head"
    IDENTITY = "deo_cube:identity"
    LAYER = "deo_cube:layer"
    LICENSE_CODE = "deo_cube:license_code"
    LICENSE_WEIGHTS = "deo_cube:license_weights"
    MASK_CLOUDS = "deo_cube:mask_clouds"
    MODEL = "deo_cube:model"
    MODEL_ALIAS = "deo_cube:model_alias"
    MODEL_FINGERPRINT = "deo_cube:model_fingerprint"
    MODEL_URL = "deo_cube:model_url"
    NORMALIZATION = "deo_cube:normalization"
    OFFSET = "deo_cube:offset"
    OVERVIEWS = "deo_cube:overviews"
    OVERVIEWS_OF = "deo_cube:overviews_of"
    PLAN = "deo_cube:plan"
    PRODUCT_LEVELS = "deo_cube:product_levels"
    RADIOMETRY = "deo_cube:radiometry"
    SCALES = "deo_cube:scales"
    SCENE = "deo_cube:scene"
    SOURCE = "deo_cube:source"
    STALE = "deo_cube:stale"
    STATE = "deo_cube:state"
    STEM = "deo_cube:stem"
    SYNTHETIC = "deo_cube:synthetic"
    VERSION = "deo_cube:version"
    WEIGHTS_SHA256 = "deo_cube:weights_sha256"
    WEIGHTS_STATUS = "deo_cube:weights_status"
    WINDOW = "deo_cube:window"
