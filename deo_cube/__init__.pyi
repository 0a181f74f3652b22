# The public names, each with its module: the only list of them. Type checkers read it, and __init__.py imports from it.

from deo_cube import errors as errors
from deo_cube import options as options
from deo_cube.accessor import DeoDataArrayAccessor as DeoDataArrayAccessor
from deo_cube.accessor import DeoDatasetAccessor as DeoDatasetAccessor
from deo_cube.cube.arrays import from_array as from_array
from deo_cube.cube.composite import composite as composite
from deo_cube.cube.open import open_cube as open_cube
from deo_cube.cube.stac_catalogs import search as search
from deo_cube.cube.synthetic import synthetic_cube as synthetic_cube
from deo_cube.embedding.embed import embed as embed
from deo_cube.embedding.load import load_cube as load_cube
from deo_cube.embedding.match import match as match
from deo_cube.embedding.plan import plan as plan
from deo_cube.encoder.card import ModelCard as ModelCard
from deo_cube.encoder.loading import verify as verify
from deo_cube.encoder.registry import card as card
from deo_cube.encoder.registry import describe as describe
from deo_cube.encoder.registry import describe_timm as describe_timm
from deo_cube.encoder.registry import list_models as list_models
from deo_cube.encoder.registry import load_encoder as load_encoder
from deo_cube.encoder.registry import register_encoder as register_encoder
from deo_cube.errors import DeoCubeError as DeoCubeError
from deo_cube.evaluate.seam import seam_report as seam_report
from deo_cube.heads.change import change as change
from deo_cube.heads.head import fit_head as fit_head
from deo_cube.heads.head import load_head as load_head
from deo_cube.heads.kmeans import cluster as cluster
from deo_cube.heads.maps import classify as classify
from deo_cube.heads.maps import segment as segment
from deo_cube.heads.pca import pca_rgb as pca_rgb
from deo_cube.heads.sample import sample as sample
from deo_cube.heads.similar import similar as similar
from deo_cube.options import set_options as set_options
from deo_cube.store.export import to_cog as to_cog
from deo_cube.store.export import to_geoparquet as to_geoparquet
from deo_cube.store.open import open_embeddings as open_embeddings
from deo_cube.store.open import verify_store as verify_store
from deo_cube.store.stac import collection_of as collection_of
from deo_cube.store.stac import model_item as model_item
from deo_cube.store.stac import publish as publish
from deo_cube.store.stac import stac_item as stac_item
from deo_cube.store.write import to_zarr as to_zarr
from deo_cube.viewer.explore import explore as explore

__version__: str
