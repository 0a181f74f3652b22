"""What published metadata conventions ask for, restated as JSON Schema in few words.

The repositories state no licence, so their files are not copied here.

- `GEOEMB`: geo-embeddings/embeddings-zarr-convention, schema.json at commit 0655212
- `EMB_ITEM`, `EMB_COLLECTION`: geo-embeddings/embeddings-stac-specification v0.0.1, json-schema/schema.json at 0a9cb04

`spatial:` and `proj:` are checked by zarr-cm (BSD-3), which the authors of these conventions keep, MLM by stac-model
(Apache-2.0), which the authors of MLM keep.
"""

from __future__ import annotations

from typing import Any


def sides(least: int = 1) -> dict[str, Any]:
    return {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer", "minimum": least}}


URI = {"type": "string", "format": "uri", "pattern": r"^[a-z][a-z0-9+.-]*:\S+$"}
TEXT = {"type": "string"}

GEOEMB: dict[str, Any] = {
    "type": "object",
    "required": ["zarr_format", "node_type", "attributes"],
    "properties": {
        "node_type": {"const": "group"},
        "attributes": {
            "type": "object",
            "required": [
                "zarr_conventions",
                *(f"geoemb:{k}" for k in ("type", "dimensions", "model", "source_data", "data_type")),
            ],
            "properties": {
                "zarr_conventions": {
                    "type": "array",
                    "contains": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["uuid"],
                        "properties": {
                            "uuid": {"const": "61c12cc5-0e28-4056-999a-480cf3fb7e4c"},
                            "schema_url": {
                                "const": "https://raw.githubusercontent.com/geo-embeddings/"
                                "embeddings-zarr-convention/refs/tags/v1/schema.json"
                            },
                            "spec_url": {
                                "const": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md"
                            },
                            "name": {"const": "geoemb:"},
                            "description": {
                                "const": "Geoembeddings convention for geospatial embedding arrays "
                                "with model provenance"
                            },
                        },
                    },
                },
                "geoemb:type": {"enum": ["pixel", "chip"]},
                "geoemb:dimensions": {"type": "integer", "minimum": 1},
                "geoemb:model": URI,
                "geoemb:source_data": {"type": "array", "minItems": 1, "items": URI},
                "geoemb:data_type": TEXT,
                "geoemb:gsd": {"type": "number", "exclusiveMinimum": 0},
                "geoemb:build_version": TEXT,
                "geoemb:spatial_layout": {"enum": ["utm_zones", "global"]},
                "geoemb:chip_layout": {
                    "type": "object",
                    "required": ["layout_type", "chip_size"],
                    "additionalProperties": False,
                    "properties": {
                        "layout_type": {"enum": ["regular_grid", "irregular"]},
                        "chip_size": sides(),
                        "stride": sides(),
                        "grid_id": TEXT,
                        "grid_definition": URI,
                    },
                },
                "geoemb:quantization": {
                    "type": "object",
                    "required": ["method", "original_dtype"],
                    "additionalProperties": False,
                    "properties": {
                        "method": TEXT,
                        "original_dtype": TEXT,
                        "quantized_dtype": TEXT,
                        "link": URI,
                        "scale": {
                            "type": "object",
                            "required": ["type", "scale"],
                            "additionalProperties": False,
                            "properties": {
                                "type": {"const": "scalar"},
                                "scale": {"type": "number"},
                                "offset": {"type": "number"},
                            },
                        },
                    },
                },
            },
            "if": {"properties": {"geoemb:type": {"const": "chip"}}},
            "then": {"required": ["geoemb:chip_layout"]},
        },
    },
}

_EXTENSION = {
    "type": "array",
    "contains": {"const": "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"},
}
#: On assets the extension defines nothing, and allows nothing of its prefix.
_ASSETS = {"type": "object", "additionalProperties": {"propertyNames": {"not": {"pattern": "^emb:"}}}}


def own(**known: Any) -> dict[str, Any]:
    """An object whose keys with the prefix ``emb:`` are among those known."""
    return {
        "type": "object",
        "properties": known,
        "propertyNames": {"anyOf": [{"not": {"pattern": "^emb:"}}, {"enum": list(known)}]},
    }


_EXPRESSION = {"type": "object", "required": ["format", "expression"], "properties": {"format": TEXT}}

EMB_ITEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "stac_extensions", "properties", "assets"],
    "properties": {
        "type": {"const": "Feature"},
        "stac_extensions": _EXTENSION,
        "assets": {**_ASSETS, "required": ["embeddings"]},
        "properties": own(
            **{
                "emb:runtime_parameters": {"type": "object"},
                "emb:preprocessing": _EXPRESSION,
                "emb:postprocessing": _EXPRESSION,
                "emb:fit_for_use": {"type": "array", "items": TEXT},
                "emb:spatial_coverage": TEXT,
                "emb:uncertainty": {"type": "object"},
                "emb:energy": {"type": "object"},
                "emb:quantization": {
                    "type": "object",
                    "required": ["method", "original_dtype"],
                    "additionalProperties": False,
                    "properties": {
                        "method": TEXT,
                        "original_dtype": TEXT,
                        "quantized_dtype": TEXT,
                        "scale": {"type": "array", "items": {"type": "number"}},
                        "offset": {"type": "array", "items": {"type": "number"}},
                        "link": {"type": "object"},
                    },
                },
            }
        ),
    },
}


def _link(rel: str) -> dict[str, Any]:
    linked = {"rel": {"const": rel}, "href": {"type": "string", "minLength": 1}}
    return {"contains": {"type": "object", "required": ["rel", "href"], "properties": linked}}


EMB_COLLECTION: dict[str, Any] = {
    **own(
        **{
            "type": {"const": "Collection"},
            "stac_extensions": _EXTENSION,
            "emb:type": {"enum": ["pixel", "chip"]},
            "emb:dimensions": {"type": "integer", "minimum": 1},
            "data_type": TEXT,
            "gsd": {"type": "number"},
            "links": {"type": "array", "allOf": [_link("emb:model"), _link("emb:source-data")]},
            "emb:chip_layout": {
                "type": "object",
                "required": ["layout_type"],
                "properties": {
                    "layout_type": {"enum": ["regular_grid", "variable_grid", "named_grid"]},
                    "chip_size": sides(),
                    "stride": sides(),
                },
            },
        }
    ),
    "required": ["type", "stac_extensions", "emb:type", "emb:dimensions", "data_type", "links"],
}
