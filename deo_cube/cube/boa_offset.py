"""Decide whether the DN in the files of a Sentinel-2 product carry the +1000 of processing baseline 04.00.

Products of baseline 04.00 and later are published as DN = reflectance x 10000 + 1000 (0 stays "no data"); archives that
harmonise subtract the 1000 again. The sensing date decides nothing, since Collection 1 reprocessed older scenes under
baseline 05.00. These decide, if they agree: the baseline, the storage location of the file, the catalogue's flag
`boa_offset_applied`, and the scale and offset stated for the file (`raster:bands`).

Two defects of one catalogue (Earth Search, sentinel-2-l2a; its issues 9, 66 and 71) are handled here: `raster:bands`
states an offset of -0.1 for files from which it was subtracted, where the flag is true and right; and the flag is false
for files of both kinds, with -0.1 stated for both, so that only the pixels differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from deo_cube.cube.stac_catalogs import CATALOGUES

__all__ = ["ADD_OFFSET", "PRODUCT_KEYS", "Offset", "Product", "bucket_of", "decide_offset", "stated_offset"]

ADD_OFFSET = -1000.0
"""DN to add to a product of baseline 04.00 or later (BOA_ADD_OFFSET, RADIO_ADD_OFFSET)."""

FIRST_BASELINE = 4.0

# Buckets and storage accounts whose files are the DN as published, and those whose files were harmonised.
_RAW = frozenset({"sentinel-s2-l1c", "gcp-public-data-sentinel-2", *(b for c in CATALOGUES.values() for b in c.raw)})
_HARMONISED = frozenset(b for c in CATALOGUES.values() for b in c.harmonised)

_BASELINE_KEYS = ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version", "processing_baseline")
_PRODUCT_KEYS = ("s2:product_uri", "s2:datatake_id", "s2:granule_id", "sentinel:product_id", "id")
_FLAG_KEYS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")

PRODUCT_KEYS = (*_BASELINE_KEYS, *_PRODUCT_KEYS, *_FLAG_KEYS, "earthsearch:s3_path")
"""Properties of an item that `Product.read` uses."""


@dataclass(frozen=True)
class Offset:
    """DN to add to the values of a file, and the reason."""

    dn: float | None
    """None where the evidence does not decide."""
    reason: str
    contradiction: bool = False
    """True if the evidence contradicts itself."""


@dataclass(frozen=True)
class Product:
    """Statements about the offset of one product."""

    baselines: frozenset[float] = frozenset()
    """Baselines in the properties and the product's names; one, where they agree."""
    applied: bool | None = None
    """The catalogue's `boa_offset_applied`."""
    places: frozenset[str] = frozenset()
    """Storage of its files: ``raw: <bucket>``, ``harmonised: <bucket>``; others decide nothing and are left out."""
    stated: frozenset[float] = frozenset()
    """Offsets stated beside a scale for its files, in DN."""

    @classmethod
    def read(
        cls, properties: Mapping[str, Any], hrefs: Iterable[str] = (), scales: Iterable[tuple[Any, Any]] = ()
    ) -> Product:
        """Read the properties of a STAC item (or coordinates named like them), hrefs, and (scale, offset) pairs."""
        stated = (stated_offset(scale, offset) for scale, offset in scales)
        hrefs = list(hrefs) or [str(properties.get("earthsearch:s3_path") or "")]
        return cls(
            baselines=frozenset(_baselines(properties)),
            applied=next((f for k in _FLAG_KEYS if (f := _flag(properties.get(k))) is not None), None),
            places=frozenset(p for h in hrefs if (p := _place(h)) is not None),
            stated=frozenset(s for s in stated if s is not None),
        )


def decide_offset(product: Product) -> Offset:
    """Weigh the evidence about one product.

    Returns
    -------
    Offset
        Undecided where there is no evidence, or where it contradicts itself.
    """
    early = {b < FIRST_BASELINE for b in product.baselines}
    names = " and ".join(f"{b:05.2f}" for b in sorted(product.baselines))
    stated = ", ".join(f"{s:g}" for s in sorted(product.stated))
    if len(early) > 1:
        return Offset(None, f"its properties and names give baselines {names}", contradiction=True)
    if early == {True}:
        if any(product.stated):
            return Offset(None, f"baseline {names} carries no offset, yet {stated} DN are stated for its files", True)
        return Offset(0.0, f"baseline {names} is before 04.00, so there is no offset, whatever other flags say")
    if odd := sorted(s for s in product.stated if abs(s) > 1 and abs(s - ADD_OFFSET) > 1):
        listed = ", ".join(f"{s:g}" for s in odd)
        return Offset(None, f"an offset of {listed} DN is stated, which is neither 0 nor -1000", contradiction=True)
    return _weigh(product, known=early == {False}, names=names)


def _weigh(product: Product, *, known: bool, names: str) -> Offset:
    """Decide for a baseline of 04.00 or later (`known`), or an unknown one, where each piece of evidence is sound."""
    evidence: list[tuple[float, str]] = []
    for place in sorted(product.places):
        kind, bucket = place.split(": ", 1)
        if kind == "harmonised":
            evidence.append((0.0, f"files in {bucket!r} are harmonised"))
        elif known:
            evidence.append((ADD_OFFSET, f"files in {bucket!r} hold the DN as published under baseline {names}"))
    if product.applied is True:
        evidence.append((0.0, "boa_offset_applied is true"))
    elif product.applied is False and known:
        reason = f"boa_offset_applied is false under baseline {names}"
        if not any(p.startswith("raw") for p in product.places):
            of_both = "which its catalogue says of files that carry the offset and of files that do not"
            return Offset(None, ", ".join([*(r for _, r in evidence), f"{reason}, {of_both}"]), contradiction=True)
        evidence.append((ADD_OFFSET, reason))
    # Flag and place agree that it was subtracted: this is the known stale statement, of no weight against the two.
    harmonised = product.applied is True and bool(product.places) and {dn for dn, _ in evidence} == {0.0}
    for dn in sorted(product.stated):
        if not (harmonised and dn == ADD_OFFSET):
            evidence.append((dn, f"raster:bands states an offset of {dn:g} DN"))
    reasons = ", ".join(reason for _, reason in evidence)
    if len({dn for dn, _ in evidence}) > 1:
        return Offset(None, reasons, contradiction=True)
    if evidence:
        stale = harmonised and ADD_OFFSET in product.stated
        note = " (raster:bands still says -1000, as is known of this catalogue)" if stale else ""
        return Offset(evidence[0][0], reasons + note)
    if known:
        return Offset(
            None, f"baseline {names} adds 1000 to the DN, but nothing says whether the file still carries them"
        )
    return Offset(None, "nothing is known of its baseline, place or scale")


def _baselines(properties: Mapping[str, Any]) -> Iterable[float]:
    for key in _BASELINE_KEYS:
        value = properties.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield float(value)
        elif isinstance(value, str) and (match := re.fullmatch(r"N?(\d\d)\.?(\d\d)|(\d\.\d+)", value.strip())):
            yield float(match[3] or f"{match[1]}.{match[2]}")
    for key in _PRODUCT_KEYS:
        value = properties.get(key)
        if isinstance(value, str) and value.lstrip("G").startswith("S2"):
            # N9999 is ESA's mark of a product reprocessed for a test, of no known baseline.
            yield from (float(f"{a}.{b}") for a, b in re.findall(r"_N(\d\d)\.?(\d\d)(?=[_.]|$)", value) if a != "99")


def _flag(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    try:
        return bool(value) if value in (True, False) else None
    except (TypeError, ValueError):
        return None


def stated_offset(scale: Any, offset: Any) -> float | None:
    """Return the DN of an offset stated together with the scale of reflectance, or of DN (1); None without one."""
    try:
        per_dn, constant = float(scale), float(offset)
    except (TypeError, ValueError):
        return None
    if 0.9e-2 <= per_dn <= 1.1e-2:  # per cent
        per_dn, constant = per_dn / 100, constant / 100
    if per_dn == 1 and constant:  # GDAL's default (1, 0) states nothing
        return constant if math.isfinite(constant) else None
    if not (0.9e-4 <= per_dn <= 1.1e-4 and math.isfinite(constant)):
        return None
    return round(constant / per_dn, 6) + 0.0


def _place(href: str) -> str | None:
    bucket = bucket_of(href)
    if bucket in _HARMONISED:
        return f"harmonised: {bucket}"
    if bucket in _RAW:
        return f"raw: {bucket}"
    if re.search(r"\.SAFE/(GRANULE|IMG_DATA)", href):
        return "raw: .SAFE"
    return None


def bucket_of(href: str) -> str:
    """Return the name of the bucket or storage account that an href points into; empty for other places."""
    if href.startswith("/vsi"):
        _, _, driver, *rest = f"/{href}".split("/")
        return rest[0] if driver in ("vsis3", "vsigs", "vsiaz") and rest else bucket_of("/".join(rest))
    parts = urlsplit(href)
    if parts.scheme in ("s3", "gs", "az", "abfs"):
        return parts.netloc
    host, first = parts.hostname or "", parts.path.strip("/").split("/")[0]
    if match := re.fullmatch(r"(.+)\.s3[.-][\w.-]*amazonaws\.com|(.+)\.blob\.core\.windows\.net", host):
        return match[1] or match[2]
    if re.fullmatch(r"s3[.-]?[\w.-]*amazonaws\.com|storage\.googleapis\.com", host):
        return first
    return "eodata" if host.endswith("dataspace.copernicus.eu") else ""
