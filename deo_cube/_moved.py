"""Import moved modules by their old paths for one more release, with a DeprecationWarning that names the new one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "install"]

#: New module by old one; an empty string for a removed package, of which only modules are imported.
MOVED = {
    "deo_cube.cube.catalogues": "deo_cube.cube.stac_catalogs",
    "deo_cube.cube.grid": "deo_cube.cube.georeference",
    "deo_cube.cube.radiometry": "deo_cube.cube.units",
    "deo_cube.embedding.runtime": "deo_cube.embedding.process",
    "deo_cube.encoder.catalog": "deo_cube.encoder.registry",
    "deo_cube.encoder.describe": "deo_cube.encoder.registry",
    "deo_cube.encoder.families": "deo_cube.encoder.networks.adapters",
    "deo_cube.encoder.keyform": "deo_cube.encoder.checkpoint_format",
    "deo_cube.encoder.limits": "deo_cube.encoder.card",
    "deo_cube.encoder.locate": "deo_cube.encoder.weights",
    "deo_cube.encoder.mobilenet": "deo_cube.encoder.networks.conv",
    "deo_cube.encoder.publish": "deo_cube.encoder.loading",
    "deo_cube.encoder.ref": "deo_cube.encoder.registry",
    "deo_cube.encoder.stems": "deo_cube.encoder.registry",
    "deo_cube.encoder.swin": "deo_cube.encoder.networks.swin",
    "deo_cube.encoder.timm_import": "deo_cube.encoder.networks.timm_import",
    "deo_cube.encoder.verify": "deo_cube.encoder.loading",
    "deo_cube.encoder.vit": "deo_cube.encoder.networks.vit",
    "deo_cube.encoder.window_attention": "deo_cube.encoder.networks.window_attention",
    "deo_cube.engine": "",
    "deo_cube.engine.embed": "deo_cube.embedding.embed",
    "deo_cube.engine.export": "deo_cube.store.export",
    "deo_cube.engine.layouts": "deo_cube.store.open",
    "deo_cube.engine.load": "deo_cube.embedding.embed",
    "deo_cube.engine.match": "deo_cube.embedding.match",
    "deo_cube.engine.metadata": "deo_cube.embedding.metadata",
    "deo_cube.engine.model_item": "deo_cube.store.stac",
    "deo_cube.engine.plan": "deo_cube.embedding.plan",
    "deo_cube.engine.reopen": "deo_cube.store.open",
    "deo_cube.engine.runtime": "deo_cube.embedding.process",
    "deo_cube.engine.stac_item": "deo_cube.store.stac",
    "deo_cube.engine.tiles": "deo_cube.embedding.tiles",
    "deo_cube.engine.write": "deo_cube.store.write",
    "deo_cube.evaluate.baselines": "deo_cube.evaluate.features",
    "deo_cube.evaluate.chips": "deo_cube.evaluate.readers",
    "deo_cube.evaluate.splits": "deo_cube.heads.splits",
    "deo_cube.heads.assessment": "deo_cube.heads.assess",
    "deo_cube.heads.cluster": "deo_cube.heads.kmeans",
    "deo_cube.heads.index_build": "deo_cube.heads.index",
    "deo_cube.heads.targets": "deo_cube.heads.regression",
    "deo_cube.heads.upernet": "deo_cube.heads.conv",
    "deo_cube.view": "",
    "deo_cube.view.explore": "deo_cube.viewer.explore",
}


class _MovedFinder(MetaPathFinder, Loader):
    """Find a moved module by its old path and fill it with the public names of the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=not MOVED[fullname])

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        if not new:
            return
        # The frame that imports is as many levels up as importlib has functions between, which warnings skips itself.
        warnings.warn(f"{module.__name__} has moved to {new}", DeprecationWarning, stacklevel=2)
        moved = import_module(new)
        module.__dict__.update({k: v for k, v in vars(moved).items() if not k.startswith("__") or k == "__all__"})


def install() -> None:
    """Ask for the old paths after every other finder, so that nothing else is found more slowly or otherwise."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
