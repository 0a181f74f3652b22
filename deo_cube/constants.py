"""Constants that several packages share."""

from __future__ import annotations

__all__ = ["DTYPES", "PRECISIONS"]

#: Dtypes of embeddings.
DTYPES = ("float16", "float32", "int8")
#: Number formats of a network's matrix products.
PRECISIONS = ("float32", "bfloat16")
