"""The load of serve_endpoint.py in a process of its own: one JSON line of figures.

python _serve_client.py URL BODIES.jsonl REQUESTS CONCURRENCY
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "flights"))

from load import send, summary

if __name__ == "__main__":
    url, file, requests, concurrency = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    rows = file.read_bytes().splitlines()
    bodies = [rows[place % len(rows)] for place in range(requests)]
    outcome = asyncio.run(send(url, os.environ.get("MOORAGE_TOKEN"), bodies, concurrency, quiet=True))
    print(json.dumps(summary(outcome, concurrency)))
