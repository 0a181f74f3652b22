"""`deo-cube demo --live`, on a real STAC API and real files on loopback; and without any network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deo_cube.cli import main
from deo_cube.cube.georeference import geobox
from deo_cube.cube.synthetic import synthetic_cube
from tests.cube.items import product, remote
from tests.cube.range_server import serve
from tests.cube.stac_api import stac_api


def test_the_live_demo_embeds_the_clearest_date_of_a_catalogue(
    tmp_path: Path,
    gdal_http: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("pystac_client")
    scene = synthetic_cube(size=160, times=2, seed=5, offset=-1000).load()
    items = []
    for t, cloud in enumerate((15.0, 2.0)):
        bands = {n: scene[n].values[t] for n in scene.data_vars if n.startswith("B") or n == "SCL"}
        day = f"2024-07-{10 + t}"
        name = f"S2B_{day}"
        item = product(tmp_path, name, bands, when=f"{day}T10:20:21Z", offset=-0.1, west=530000.0)
        item["properties"] |= {"eo:cloud_cover": cloud, "s2:processing_baseline": "05.10"}
        items.append(item | {"collection": "sentinel-2-test"})
    box = items[0]["bbox"]
    place = [box[0] + 0.001, box[1] + 0.001, box[2] - 0.001, box[3] - 0.001]
    with serve(tmp_path) as server, stac_api([remote(i, tmp_path, server.url) for i in items], tmp_path) as url:
        out = tmp_path / "demo"
        call = ["demo", "--out", out, "--live", "--catalogue", url, "--collection", "sentinel-2-test", "--bbox", *place]
        with pytest.raises(SystemExit) as done:
            main([str(c) for c in call])
    assert done.value.code == 0
    said = capsys.readouterr().out
    assert "S2B_2024-07-11" in said
    assert (out / "embeddings.png").stat().st_size > 10_000
    import deo_cube

    emb = deo_cube.open_embeddings(out / "embeddings.zarr")
    assert emb.sizes["time"] == 1
    assert str(emb.time.values[0])[:10] == "2024-07-11"
    assert np.isfinite(emb.values).mean() > 0.5
    assert geobox(emb.isel(embedding=0, drop=True)).crs == "EPSG:32632"


def test_the_live_demo_without_a_network_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import deo_cube

    with deo_cube.set_options(offline=True), pytest.raises(SystemExit) as done:
        main(["demo", "--out", str(tmp_path / "demo"), "--live"])
    assert done.value.code == 2
    assert "needs the network, and the option offline is set" in capsys.readouterr().err
    with deo_cube.set_options(offline=False), pytest.raises(SystemExit) as done:
        main(["demo", "--live", "--catalogue", "http://127.0.0.1:9", "--collection", "x", "--out", str(tmp_path / "d")])
    assert done.value.code == 2
    assert "did not answer" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
