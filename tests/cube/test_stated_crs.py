"""CRSs stated where few look: in coordinates, nested attributes, encodings, in forms of other tools; contradictions."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyproj
import pytest
import rioxarray  # noqa: F401 - registers .rio
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.crs import CRS

from deo_cube.cube.georeference import geobox, read_crs, same_crs
from deo_cube.errors import DeoCubeError, MissingCRSError

PROJ = pyproj.CRS(32633)
WKT = PROJ.to_wkt()
ESRI = PROJ.to_wkt("WKT1_ESRI")


def bare() -> xr.Dataset:
    """Two bands with coordinates at pixel centres and no CRS."""
    coords = {"y": 5e6 - (np.arange(6) + 0.5) * 10, "x": 6e5 + (np.arange(9) + 0.5) * 10}
    return xr.Dataset({b: (("y", "x"), np.ones((6, 9), "uint16")) for b in ("B02", "B03")}, coords=coords)


def held(value: Any) -> xr.Variable:
    box = np.empty((), object)
    box[()] = value
    return xr.Variable((), box)


def each(ds: xr.Dataset, **attrs: Any) -> xr.Dataset:
    for name in ds.data_vars:
        ds[name].attrs |= attrs
    return ds


def with_encoding(ds: xr.Dataset, **encoding: Any) -> xr.Dataset:
    ds["B02"].encoding |= encoding
    return ds


def with_variable(ds: xr.Dataset, name: str, attrs: dict[str, Any], mapping: str | None = None) -> xr.Dataset:
    ds = ds.assign({name: xr.Variable((), 0, attrs)})
    return each(ds, grid_mapping=mapping) if mapping else ds


WAYS = {
    "satpy: coordinate crs, a CRS object": lambda: bare().assign_coords(crs=held(PROJ)),
    "satpy: attribute area": lambda: each(bare(), area=SimpleNamespace(crs=PROJ)),
    "coordinate crs, a code": lambda: bare().assign_coords(crs="EPSG:32633"),
    "coordinate crs, WKT": lambda: bare().assign_coords(crs=WKT),
    "coordinate spatial_ref, a code": lambda: bare().assign_coords(spatial_ref=32633),
    "coordinate epsg_code, text": lambda: bare().assign_coords(epsg_code="32633"),
    "coordinate proj:code": lambda: bare().assign_coords({"proj:code": "EPSG:32633"}),
    "coordinate along time, one value": lambda: (
        bare().expand_dims(time=2).assign_coords({"proj:epsg": ("time", np.array([32633, 32633]))})
    ),
    "GDAL Zarr: _CRS wkt": lambda: each(bare(), _CRS={"wkt": WKT}),
    "GDAL Zarr: _CRS url": lambda: each(bare(), _CRS={"url": "http://www.opengis.net/def/crs/EPSG/0/32633"}),
    "GDAL Zarr: _CRS projjson": lambda: each(bare(), _CRS={"projjson": PROJ.to_json_dict()}),
    "SNAP: crs:wkt": lambda: with_variable(bare(), "crs", {"wkt": PROJ.to_wkt("WKT1_GDAL")}, "crs"),
    "ESRI: esri_pe_string": lambda: with_variable(bare(), "crs", {"esri_pe_string": ESRI}, "crs"),
    "ESRI: esri_pe_string of a band": lambda: each(bare(), esri_pe_string=ESRI),
    "proj4 of a band": lambda: each(bare(), proj4="+proj=utm +zone=33 +datum=WGS84 +units=m"),
    "grid mapping of another name": lambda: with_variable(bare(), "transverse_mercator", {"spatial_ref": WKT}),
    "grid mapping with a code": lambda: with_variable(bare(), "crs", {"epsg_code": "EPSG:32633"}, "crs"),
    "attribute spatial_ref of the group": lambda: bare().assign_attrs(spatial_ref=WKT),
    "attribute proj:code of the group": lambda: bare().assign_attrs({"proj:code": "EPSG:32633"}),
    "attribute proj:epsg, text": lambda: bare().assign_attrs({"proj:epsg": "32633"}),
    "encoding crs_wkt": lambda: with_encoding(bare(), crs_wkt=WKT),
    "EOPF: other_metadata": lambda: bare().assign_attrs(other_metadata={"horizontal_CRS_code": "EPSG:32633"}),
    "EOPF: stac_discovery": lambda: bare().assign_attrs(stac_discovery={"properties": {"proj:epsg": 32633}}),
    "EOPF: attributes of a band": lambda: each(bare(), **{"proj:epsg": 32633, "proj:wkt2": WKT}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_crs_is_read_wherever_it_is_stated(way: str) -> None:
    cube = WAYS[way]()
    box = geobox(cube)
    if "esri" in way or "proj4" in way:  # names and order of axes are lost in these forms
        assert same_crs(box.crs, CRS("EPSG:32633"))
    else:
        assert box.crs == CRS("EPSG:32633")
    assert box.boundingbox.bbox == (6e5, 5e6 - 60, 6e5 + 90, 5e6)


def test_codes_that_state_nothing_are_passed_over() -> None:
    empty = bare().assign_coords(spatial_ref=0).assign_attrs({"proj:code": None, "crs": ""})
    with pytest.raises(MissingCRSError, match="write_crs"):
        geobox(empty)
    assert geobox(empty.assign_attrs({"proj:wkt2": WKT})).crs == CRS("EPSG:32633")
    # An attribute called crs that is another thing beside one that is a CRS.
    assert geobox(bare().assign_attrs(crs="unknown", crs_wkt=WKT)).crs == CRS("EPSG:32633")


CONTRADICTIONS = {
    "attributes": lambda: bare().assign_attrs({"crs": "EPSG:32632", "proj:code": "EPSG:32633"}),
    "attribute and coordinate": lambda: bare().assign_attrs(crs="EPSG:32632").assign_coords(epsg=32633),
    "two keys of a grid mapping": lambda: with_variable(bare(), "crs", {"spatial_ref": WKT, "epsg_code": 32632}, "crs"),
    "bands": lambda: bare().assign(
        B02=bare().B02.assign_attrs(crs="EPSG:32632"), B03=bare().B03.assign_attrs(crs="EPSG:32633")
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_contradictions_are_refused_by_name_and_the_advice_decides(kind: str) -> None:
    cube = CONTRADICTIONS[kind]()
    with pytest.raises(MissingCRSError, match="write_crs") as caught:
        geobox(cube)
    assert "EPSG:32632" in str(caught.value)
    assert "EPSG:32633" in str(caught.value)
    (advice,) = re.findall(r"ds\.rio\.write_crs\(.*?\)", str(caught.value))
    decided = geobox(eval(advice, {"ds": cube}))
    assert decided.crs == CRS(re.search(r"EPSG:\d+", advice)[0])  # type: ignore[index]
    for code in (32632, 32633):
        assert geobox(cube.rio.write_crs(f"EPSG:{code}")).crs.epsg == code


@given(
    st.one_of(
        st.text(max_size=12),
        st.integers(-(2**40), 2**40),
        st.floats(),
        st.booleans(),
        st.dictionaries(st.sampled_from(["type", "grid_mapping_name", "wkt"]), st.text(max_size=5), max_size=2),
    )
)
def test_what_is_not_a_crs_raises_no_foreign_error(stated: Any) -> None:
    try:
        read_crs(stated)
    except DeoCubeError:
        return
