"""Serve an application and stay until a file is there: `python stays.py FILE`."""

import os
import sys
import time

from ray import serve


@serve.deployment
def here(request):
    return "here"


serve.run(here.bind(), name="stays", route_prefix="/stays")
print("serving", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.1)
