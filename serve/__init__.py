"""Inside a deployment: typed contracts, batching, model hosts, placement on a lease, monitors.

`contract` and `batching` know no Ray (a unit test says so); `host`, `apps` and `monitors` do. A user's
endpoint is a pydantic request, a pydantic answer and a `Predictor`; `host.application` makes them a Serve
application.
"""

if __name__ == "serve":
    raise ImportError("'serve' is a root folder of Moorage: import it as 'moorage.serve'")
