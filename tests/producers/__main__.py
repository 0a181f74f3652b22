"""Run producers and write docs/producers.md."""

from __future__ import annotations

import sys

from tests.producers.table import main

sys.exit(main(sys.argv[1:]))
