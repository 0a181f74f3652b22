"""The look at a cube before a store is begun."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import deo_cube
from deo_cube.errors import AmbiguousUnitsError, ArgumentError, DeoCubeError
from deo_cube.store import write

DN = {"units": "dn", "offset": 0, "tile": 32, "halo": 8, "block": 64}


def cube(times=3, size=128, **options):
    ds = deo_cube.synthetic_cube(
        size=size, times=times, clouds=False, gaps=False, chunks={"time": 1, "y": 64, "x": 64}, **options
    )
    return ds.drop_vars("land_cover")


def bare(ds):
    return ds.drop_vars("processing_baseline").drop_attrs().assign_attrs(crs="EPSG:32633")


def counted(ds, chunks):
    """The cube, and `chunks` filled with the bands whose chunks are read."""

    def read(block, name):
        chunks.append(name)
        return block

    return ds.assign({n: v.copy(data=v.data.map_blocks(read, n, meta=v.data._meta)) for n, v in ds.data_vars.items()})


@pytest.mark.parametrize("date", [0, 1, 2])
def test_a_fill_value_of_one_date_stops_the_job_before_a_store_is_begun(tmp_path, date):
    ds = bare(cube().drop_vars("SCL"))
    ds = ds.where(ds.time != ds.time[date], 65535).astype("uint16")
    emb = ds.deo.embed(**DN)
    with pytest.raises(AmbiguousUnitsError, match="nodata=65535"):
        emb.deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    assert not (tmp_path / "emb.zarr").exists()
    # The advice, followed on the same path:
    kept = ds.deo.embed(**DN, nodata=65535).deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    assert kept.valid.mean(("y", "x")).values.tolist() == [float(t != date) for t in range(3)]


WRONG = {
    "per cent": (lambda ds: ds.astype("float32") / 100, 'units="percent"', {"units": "dn"}),
    "fractions": (lambda ds: ds.astype("float32") / 10000, 'units="reflectance"', {"units": "dn"}),
    "dn": (lambda ds: ds.astype("float32"), 'units="dn"', {"units": "reflectance"}),
    "8 bit": (lambda ds: (ds // 5).clip(max=255).astype("uint16"), "uint8_rgb", {}),
    "wrapped": (lambda ds: ds.astype("uint16") - np.uint16(3000), "int32", {"units": "auto"}),
    "subtracted": (lambda ds: ds, "offset=0", {"offset": "auto"}),
}


@pytest.mark.parametrize("kind", [k for k in WRONG if k not in ("per cent", "subtracted")])
def test_values_that_are_something_else_are_found(kind):
    change, advice, options = WRONG[kind]
    ds = change(bare(cube(times=2).drop_vars("SCL")))
    with pytest.raises(AmbiguousUnitsError, match=advice):
        write.before_writing(ds.deo.embed(**{"offset": 0, "tile": 32, "halo": 8, "block": 64, **options}))


def test_the_look_is_bounded_and_reads_no_chunk_twice():
    chunks = []
    ds = cube(times=6, size=256)
    emb = counted(ds, chunks).deo.embed(tile=32, halo=8, block=64)
    assert not chunks
    write.before_writing(emb)
    assert 0 < len(chunks) <= len(ds.data_vars) + 1
    assert sorted(set(chunks)) == sorted(chunks)  # one chunk per band, and of SCL
    chunks.clear()
    along = ds.drop_vars("SCL").to_dataarray("band").chunk(band=-1)
    along = along.copy(data=along.data.map_blocks(lambda b: chunks.append("all") or b, meta=along.data._meta))
    along.attrs = ds.B02.attrs
    write.before_writing(along.deo.embed(tile=32, halo=8, block=64))
    assert len(chunks) == 3  # the chunks of three dates hold all bands


def test_a_date_that_was_left_out_is_not_looked_at(tmp_path):
    ds = bare(cube().drop_vars("SCL"))
    ds = ds.where(ds.time != ds.time[1], 65535).astype("uint16")
    write.before_writing(ds.deo.embed(**DN).isel(time=[0, 2]))
    with pytest.raises(AmbiguousUnitsError):
        write.before_writing(ds.deo.embed(**DN).isel(time=[1]))


def test_classes_and_masks_are_looked_at():
    ds = cube(times=2)
    with pytest.raises(ArgumentError, match="expected the classes"):
        write.before_writing(ds.assign(SCL=ds.SCL * 20).deo.embed(tile=32, halo=8, block=64))
    with pytest.raises(ArgumentError, match="expected truth values"):
        write.before_writing(ds.deo.embed(mask=(ds.SCL * 20).rename("m"), tile=32, halo=8, block=64))
    write.before_writing(ds.deo.embed(mask=ds.SCL == 9, tile=32, halo=8, block=64))


def test_what_cannot_be_read_here_is_left_to_the_job(monkeypatch):
    import threading

    def fail(block):
        raise OSError("not on this machine")

    hold = threading.Event()

    def wait(block):
        hold.wait(60)
        return block

    ds = cube(times=1)
    monkeypatch.setattr(write, "PATIENCE", 0.2)
    for read in (fail, wait):
        broken = ds.assign(B02=ds.B02.copy(data=ds.B02.data.map_blocks(read, meta=ds.B02.data._meta)))
        broken = broken.assign({n: broken.B02.assign_attrs(ds[n].attrs) for n in ds.data_vars if n != "SCL"})
        write.before_writing(broken.deo.embed(tile=32, halo=8, block=64))
    hold.set()


def test_other_embeddings_have_nothing_to_look_at():
    emb = cube(times=1).deo.embed(tile=32, halo=8, block=64)
    write.before_writing(emb.compute())
    write.before_writing(emb.compute().chunk())
    write.before_writing(xr.zeros_like(emb).chunk())
    large = emb.copy(data=da.zeros(emb.shape))
    write.before_writing(large)


def test_valid_is_refused_as_embeddings_are():
    ds = bare(cube(times=1).drop_vars("SCL")).astype("float32") / 10000
    emb = ds.deo.embed(**DN)
    for part in (emb, emb.valid):
        with pytest.raises(DeoCubeError, match='units="reflectance"'):
            part.compute()
