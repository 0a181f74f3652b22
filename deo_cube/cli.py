"""The command line: `deo-cube demo | embed | plan | models | verify | segment | evaluate | bench | publish | ...`.

Flags are the arguments of the verbs.

Exit status: 0 done, 1 something found wrong (`verify`, `doctor`) or a fault of deo_cube, 2 a mistake in the call or an
input, disk or network that cannot be used, 130 interrupted.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from deo_cube import shell
from deo_cube.errors import ArgumentError
from deo_cube.paths import is_url, local_path

__all__ = ["COMMANDS", "main"]


def demo(
    out: Annotated[Path, arg(help="folder for the Zarr store and the picture")] = Path("demo"),
    size: Annotated[int, arg(help="pixels on a side")] = 1024,
    model: Annotated[str, arg(help="model to embed with")] = "tiny",
    live: Annotated[bool, arg(help="real Sentinel-2, the clearest date of a catalogue; needs the network")] = False,
    catalogue: Annotated[str, arg(help="with --live: its name, or the URL of a STAC API")] = "earth-search",
    collection: Annotated[str | None, arg(help="with --live: of that API")] = None,
    bbox: Annotated[tuple[float, float, float, float] | None, arg(help="with --live: west south east north")] = None,
    datetime: Annotated[str | None, arg(help="with --live: dates to choose from")] = None,
) -> None:
    """Embed a synthetic scene with the bundled model, offline, and draw what came out."""
    from deo_cube.demo import run

    given = {"catalogue": catalogue, "collection": collection, "bbox": bbox, "datetime": datetime}
    run(out, size=size, model=model, live={k: v for k, v in given.items() if v is not None} if live else None)


def embed(
    cube: Annotated[Positional[str], arg(help="cube: .zarr, .nc, .tif, or .json of STAC items", metavar="CUBE")],
    out: Annotated[
        Positional[str], arg(help="Zarr store of embeddings; resumed if it was begun by the same call", metavar="OUT")
    ],
    model: Annotated[str, arg(help="name of a model, or folder of a training run")] = "tiny",
    weights: Annotated[Path | None, arg(help="weights file")] = None,
    bands: Annotated[tuple[str, ...], arg(help="B04=red B08=4 ...: band of the model, variable of the cube")] = (),
    missing: Annotated[Literal["raise", "nearest", "mean"], arg(help="for a band the cube lacks")] = "raise",
    units: Annotated[Literal["auto", "dn", "reflectance", "percent", "uint8_rgb"], arg(help="of the values")] = "auto",
    offset: Annotated[str, arg(help="DN to add: auto, 0 or -1000")] = "auto",
    nodata: Annotated[str, arg(help="stored value that means no measurement: auto, none or a number")] = "auto",
    mask: Annotated[str | None, arg(help="variable that is True where a pixel must not count, or scl")] = None,
    normalize: Annotated[str | None, arg(help="normalization of the model, by name")] = None,
    tile: Annotated[int | None, arg(help="tile, pixels; decides the numbers")] = None,
    halo: Annotated[int | None, arg(help="context on each side, pixels; decides the numbers")] = None,
    block: Annotated[int | None, arg(help="task and shard, pixels")] = None,
    layer: Annotated[str | None, arg(help="layer of the model")] = None,
    anchor: Annotated[Literal["grid", "array"], arg(help="where tiles begin: CRS origin, or corner")] = "grid",
    edge: Annotated[Literal["pad", "drop"], arg(help="patches partly outside the cube")] = "pad",
    dtype: Annotated[Literal["float16", "float32", "int8"], arg(help="of the store")] = "float16",
    batch_size: Annotated[int | None, arg(help="tiles at once")] = None,
    device: Annotated[str | None, arg(help="cpu, cuda, cuda:1")] = None,
    precision: Annotated[Literal["float32", "bfloat16"], arg(help="of the network's matrix products")] = "float32",
    scheduler: Annotated[
        str | None, arg(help="threads, processes, synchronous, or a Dask scheduler: tcp://... or its file, .json")
    ] = None,
    workers: Annotated[int | None, arg(help="blocks in flight, for threads and processes")] = None,
    retries: Annotated[int, arg(help="tries more for a chunk that could not be read")] = 3,
    read_timeout: Annotated[float, arg(help="seconds after which a chunk counts as not read")] = 1800.0,
    worker_timeout: Annotated[float, arg(help="seconds to wait for workers while a cluster has none")] = 600.0,
    resume: Annotated[
        Literal["check", "changed", "unchecked"],
        arg(help="finished blocks: compare their inputs; do those again whose inputs changed; or do not compare"),
    ] = "check",
    overwrite: Annotated[bool, arg(help="begin again")] = False,
    progress: Annotated[bool, arg(help="show the progress bar")] = True,
    group: Annotated[str | None, arg(help="of a Zarr or netCDF store that keeps its cube in a group")] = None,
    allow: Annotated[tuple[str, ...], arg(help="hosts, folders, prefixes of URLs that STAC items may name")] = (),
) -> None:
    """Embed a cube into a Zarr store; run it again to go on after a stop."""
    from deo_cube.cube.open import open_cube
    from deo_cube.embedding.embed import embed as embed_cube
    from deo_cube.store.write import to_zarr

    # The cluster first: a device that is not here may be there.
    with _log_lines(progress), _cluster(scheduler) as kind:
        emb = embed_cube(
            open_cube(cube, **_where(group, allow)),
            model,
            weights=weights,
            bands=_bands(bands),
            missing=missing,
            units=units,
            offset=_number(offset),
            nodata=_number(nodata),
            mask=mask,
            normalize=normalize,
            tile=tile,
            halo=halo,
            block=block,
            layer=layer,
            anchor=anchor,
            edge=edge,
            dtype=dtype,
            batch_size=batch_size,
            device=device,
            precision=precision,
        )
        done = to_zarr(
            emb,
            out,
            resume=True if resume == "check" else resume,
            overwrite=overwrite,
            progress=progress,
            retries=retries,
            read_timeout=read_timeout,
            scheduler=kind,
            num_workers=workers,
            worker_timeout=worker_timeout,
        )
    print(f"{out}: {', '.join(f'{d} {n}' for d, n in done.sizes.items())}, {done.dtype}")


def plan(
    cube: Annotated[Positional[str], arg(help="cube: .zarr, .nc, .tif, or .json of STAC items", metavar="CUBE")],
    model: Annotated[str, arg(help="name of a model, or folder of a training run")] = "tiny",
    weights: Annotated[Path | None, arg(help="--measure: weights file")] = None,
    bands: Annotated[tuple[str, ...], arg(help="B04=red B08=4 ...: band of the model, variable of the cube")] = (),
    missing: Annotated[Literal["raise", "nearest", "mean"], arg(help="for a band the cube lacks")] = "raise",
    units: Annotated[Literal["auto", "dn", "reflectance", "percent", "uint8_rgb"], arg(help="of the values")] = "auto",
    offset: Annotated[str, arg(help="DN to add: auto, 0 or -1000")] = "auto",
    nodata: Annotated[str, arg(help="stored value that means no measurement: auto, none or a number")] = "auto",
    tile: Annotated[int | None, arg(help="tile, pixels")] = None,
    halo: Annotated[int | None, arg(help="context on each side, pixels")] = None,
    block: Annotated[int | None, arg(help="task and shard, pixels")] = None,
    layer: Annotated[str | None, arg(help="layer of the model")] = None,
    edge: Annotated[Literal["pad", "drop"], arg(help="patches partly outside the cube")] = "pad",
    dtype: Annotated[Literal["float16", "float32", "int8"], arg(help="of the store")] = "float16",
    device: Annotated[str | None, arg(help="cpu, cuda, cuda:1")] = None,
    measure: Annotated[bool, arg(help="encode a few tiles to learn the rate")] = False,
    group: Annotated[str | None, arg(help="of a Zarr or netCDF store that keeps its cube in a group")] = None,
    allow: Annotated[tuple[str, ...], arg(help="hosts, folders, prefixes of URLs that STAC items may name")] = (),
) -> None:
    """Count tiles, tokens, bytes and time before embedding."""
    from deo_cube.cube.open import open_cube
    from deo_cube.embedding.plan import plan as plan_cube

    given: dict[str, Any] = {"weights": weights, "bands": _bands(bands), "missing": missing, "units": units}
    given |= {"offset": _number(offset), "nodata": _number(nodata), "tile": tile, "halo": halo, "block": block}
    given |= {"layer": layer, "edge": edge, "dtype": dtype, "device": device}
    print(
        shell.in_flags(
            repr(plan_cube(open_cube(cube, **_where(group, allow)), model, measure=measure, **given)), ["measure"]
        )
    )


def models() -> None:
    """List the models on offer."""
    from deo_cube.encoder.registry import list_models

    print(list_models().to_string(index=False))


def verify(
    what: Annotated[
        Positional[str | None], arg(help="a model's name, or a store of embeddings", metavar="NAME|STORE")
    ] = None,
    weights: Annotated[Path | None, arg(help="weights file of the model")] = None,
    published: Annotated[Path | None, arg(help="file of published weights, with no model named")] = None,
    data: Annotated[Path | None, arg(help="--published: labelled chips that show how the weights want them")] = None,
    bands: Annotated[str | None, arg(help="--published: channels of --data, as B01,B02,...,B12,B8A")] = None,
    offset: Annotated[float, arg(help="--published: DN to add to --data: 0 or -1000")] = 0.0,
    limit: Annotated[int, arg(help="--published: chips a class")] = 400,
    size: Annotated[int, arg(help="--published: side to enlarge chips to, beside their own")] = 224,
    model: Annotated[str | None, arg(help="--published: swinb, vitb; default: what the file's tensors say")] = None,
    device: Annotated[str, arg(help="--published: cpu, cuda")] = "cpu",
    json: Annotated[Path | None, arg(help="--published: write the findings there")] = None,
    repair: Annotated[bool, arg(help="of a store: have damaged blocks done again by the call that made it")] = False,
) -> int:
    """Check a model's weights, every block of a store, or --published weights and how they want their input."""
    if published is not None:
        from deo_cube.evaluate.published import verify_published

        names = bands.split(",") if bands else None
        said = verify_published(
            published, data, model=model, bands=names, offset=offset, limit=limit, sizes=(size,), device=device
        )
        print(said)
        if json is not None:
            said.to_json(json)
        return 0
    if what is None:
        raise ArgumentError("verify needs the name of a model, a store of embeddings, or --published FILE")
    if is_url(what) or ((path := local_path(what)).exists() and not (path / "card.json").exists()):
        from deo_cube.store.open import verify_store

        state = verify_store(what, repair=repair, progress=True)
        print(state)
        return 0 if state.complete else 1
    from deo_cube.encoder.verify import verify as verify_model

    found = verify_model(what, weights=weights)
    print(found)
    return 0 if found.ok else 1


def segment(
    cube: Annotated[
        Positional[str],
        arg(help="cube or store of embeddings: .zarr, .nc, .tif, or .json of STAC items", metavar="CUBE"),
    ],
    head: Annotated[Positional[Path], arg(help="file of a saved head (.safetensors)", metavar="HEAD")],
    out: Annotated[Positional[Path], arg(help="class map: .tif, or .zarr", metavar="OUT")],
    units: Annotated[Literal["auto", "dn", "reflectance", "percent", "uint8_rgb"], arg(help="of the values")] = "auto",
    offset: Annotated[str, arg(help="DN to add: auto, 0 or -1000")] = "auto",
    nodata: Annotated[str, arg(help="stored value that means no measurement: auto, none or a number")] = "auto",
    bands: Annotated[tuple[str, ...], arg(help="B04=red B08=4 ...: band of the model, variable of the cube")] = (),
    missing: Annotated[Literal["raise", "nearest", "mean"], arg(help="for a band the cube lacks")] = "raise",
    mask: Annotated[str | None, arg(help="variable that is True where a pixel must not count, or scl")] = None,
    model: Annotated[str | None, arg(help="folder of the training run, if the head's model is not known")] = None,
    overwrite: Annotated[bool, arg(help="replace what is at OUT, whatever it is")] = False,
    group: Annotated[str | None, arg(help="of a Zarr or netCDF store that keeps its cube in a group")] = None,
    allow: Annotated[tuple[str, ...], arg(help="hosts, folders, prefixes of URLs that STAC items may name")] = (),
) -> None:
    """Map classes with a head that `fit_head(...).save(...)` wrote."""
    from deo_cube.cube.open import open_cube
    from deo_cube.heads.maps import segment as segment_cube
    from deo_cube.store.announce import computing
    from deo_cube.store.open import is_embeddings, open_embeddings

    out = local_path(out)
    tif = out.suffix.lower() in (".tif", ".tiff")
    if not overwrite:
        _check_out(out, tif=tif, inputs=(cube, head))
    if is_embeddings(cube):
        classes = segment_cube(open_embeddings(cube), head)
    else:
        given: dict[str, Any] = {"units": units, "offset": _number(offset), "nodata": _number(nodata), "mask": mask}
        given |= {"bands": _bands(bands), "missing": missing} | ({} if model is None else {"model": model})
        classes = segment_cube(open_cube(cube, **_where(group, allow)), head, **given)
    if tif:
        import rioxarray  # noqa: F401 - registers .rio

        flat = classes.squeeze(drop=True)
        if flat.ndim != 2:
            raise ArgumentError(f"a GeoTIFF holds one date, the cube has {classes.sizes['time']}: name OUT .zarr")
        with _log_lines(True), computing(classes, out):
            flat.rio.to_raster(out)
    else:
        with _log_lines(True), computing(classes, out):
            classes.to_dataset(name="class").to_zarr(out, mode="w", zarr_format=3, consolidated=True)
    print(f"{out}: {', '.join(f'{d} {n}' for d, n in classes.sizes.items())}")


def evaluate(
    model: Annotated[Positional[str], arg(help="name of a model, or folder of a training run", metavar="MODEL")],
    data: Annotated[Positional[Path], arg(help="folder that holds the labelled data sets", metavar="DATA")],
    tasks: Annotated[tuple[str, ...], arg(help="tasks to run; default all whose data are there")] = (),
    out: Annotated[Path | None, arg(help="JSON file for the scores, written after each task")] = None,
    quick: Annotated[bool, arg(help="fewer chips and seeds: to see that it runs")] = False,
) -> None:
    """Score a model with baselines beside it, and print the table."""
    from deo_cube.evaluate.report import evaluate as evaluate_model

    print(evaluate_model(model, data, tasks=tasks or None, quick=quick, progress=True, out=out))


def bench(
    model: Annotated[
        Positional[str], arg(help="name of a model, or folder of a training run", metavar="MODEL")
    ] = "tiny",
    size: Annotated[int, arg(help="side of the synthetic cube, pixels")] = 2048,
    rounds: Annotated[int, arg(help="rounds that count, after one to warm up")] = 3,
    device: Annotated[str | None, arg(help="cpu, cuda, cuda:1, mps; default the best there is")] = None,
    json: Annotated[bool, arg(help="print JSON instead of text")] = False,
) -> None:
    """Time a model on this machine: the encoder alone, and from Zarr to Zarr."""
    from deo_cube.bench import bench as run

    found = run(model, size=size, rounds=rounds, device=device, progress=True)
    print(found.to_json() if json else found)


def publish(
    store: Annotated[Positional[Path], arg(help="store of embeddings, a folder")],
    model: Annotated[str | None, arg(help="folder of the training run, where its name is not known")] = None,
    license: Annotated[str, arg(help="of the embeddings: SPDX identifier, or other")] = "other",
) -> None:
    """Write a store's STAC Item and Collection, and its model's MLM Item, beside it."""
    from deo_cube.store.stac import publish as publish_store

    for path in publish_store(store, model=model, license=license):
        print(path)


def doctor(
    json: Annotated[bool, arg(help="print JSON instead of text")] = False,
) -> int:
    """Look at versions, devices, caches and the hub, embed a small scene, and say what mends what is broken."""
    from deo_cube.doctor import examine

    found = examine()
    print(found.to_json() if json else found)
    return 0 if found.healthy else 1


def view(
    store: Annotated[Positional[str], arg(help="store of embeddings", metavar="STORE")],
    cube: Annotated[str | None, arg(help="cube that was embedded, for true colour: .zarr, .nc, .tif, or .json")] = None,
    head: Annotated[tuple[Path, ...], arg(help="saved heads to show as layers")] = (),
    host: Annotated[str, arg(help="address to listen on; 0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, arg(help="port; 0 takes a free one")] = 0,
    browser: Annotated[bool, arg(help="open the page in the browser")] = True,
    hostnames: Annotated[tuple[str, ...], arg(help="further names of this machine that browsers may use")] = (),
) -> None:
    """Look at a store on a map: similar places, labels, classes. Serves this machine only until it is stopped."""
    from deo_cube.view.explore import serve

    serve(store, cube=cube, heads=head, host=host, port=port, browser=browser, hostnames=hostnames)


def _check_out(out: Path, *, tif: bool, inputs: tuple[str | Path, ...]) -> None:
    """Refuse to replace what is not a class map: writing deletes what was there."""
    if out.exists() and any(Path(i).exists() and out.samefile(i) for i in inputs):
        raise ArgumentError(f"OUT {out} is an input of this command, and would be deleted: name another path")
    if not tif and out.suffix.lower() != ".zarr":
        raise ArgumentError(f"OUT is a class map, .tif or .zarr; got {out}")
    if out.is_dir() and (tif or (any(out.iterdir()) and not (out / "class" / "zarr.json").exists())):
        raise ArgumentError(f"{out} is there and is not a class map: name another path, or pass --overwrite")


def _where(group: str | None, allow: tuple[str, ...]) -> dict[str, Any]:
    """Options of `open_cube` that were given."""
    return ({} if group is None else {"group": group}) | ({"allow": allow} if allow else {})


def _number(text: str) -> Any:
    """A number where `text` is one, None for "none", else the text."""
    if text.strip().lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _bands(texts: tuple[str, ...]) -> Any:
    """``B04=red B08=4`` as a mapping, ``B04 B03 B02`` as a list."""
    named = [t.partition("=") for t in texts]
    if len({bool(sign) for _, sign, _ in named}) > 1:
        raise ArgumentError(f"--bands are names (B04 B03 B02), or names and variables (B04=red B03=green); got {texts}")
    return {k: v for k, _, v in named} if named and named[0][1] else list(texts) or None


class _Flags(logging.Formatter):
    """Log lines as messages of the command line, which name flags."""

    flags = tuple(inspect.signature(embed).parameters)

    def format(self, record: logging.LogRecord) -> str:
        return f"deo-cube: {shell.in_flags(record.getMessage(), self.flags)}"


@contextmanager
def _log_lines(progress: bool) -> Iterator[None]:
    """Print what the package logs to standard error: with `progress` the first and last line of a job, too."""
    log, handler = logging.getLogger("deo_cube"), logging.StreamHandler(sys.stderr)
    before = log.level, log.propagate
    handler.setFormatter(_Flags())
    log.addHandler(handler)
    log.setLevel(logging.INFO if progress else logging.WARNING)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


@contextmanager
def _cluster(scheduler: str | None) -> Iterator[str | None]:
    from deo_cube.store.scheduler import connect, is_address

    if scheduler is None or not is_address(scheduler):
        yield scheduler
        return
    with connect(scheduler) as client, client.as_current():
        yield "distributed"


def _flags(args: list[str]) -> list[str]:
    """Arguments of the command that is called which are flags, not positions."""
    parameters = inspect.signature(COMMANDS[args[0]]).parameters if args and args[0] in COMMANDS else {}
    return [name for name, p in parameters.items() if "Positional" not in str(p.annotation)]


#: Every command by its name; logic lives in the modules that they call.
COMMANDS: dict[str, Any] = {
    verb.__name__: verb for verb in (demo, embed, plan, models, verify, segment, evaluate, bench, publish, doctor, view)
}


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    if (sys.argv[1:] if args is None else args) == ["--version"]:
        from deo_cube import __version__

        print(f"deo-cube {__version__}")
        raise SystemExit(0)
    args = sys.argv[1:] if args is None else args
    flags = _flags(args)
    try:
        with shell.warnings_as_lines(flags):
            status = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="deo-cube", description=__doc__, args=args)
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone; what Python flushes at its end has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        resumed = "; blocks that are done are safe, the same call resumes" if args[:1] == ["embed"] else ""
        print(f"deo-cube: interrupted{resumed}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        raise SystemExit(shell.fail(error, flags)) from error
    raise SystemExit(status or 0)
