"""The HTTP edge: Ray's Jobs REST API and Moorage's own routes. Never imports Ray, never touches the database.

`app.create_app(control, spool, settings)` is the way in. A request passes, in this order: access log, problem
documents, Host/Origin check, authentication, and only then a handler that parses anything.

    settings.py    what is configurable, with its limits          middleware.py  the four layers above
    spool.py       uploaded packages on disk, content addressed   packages.py    GET/PUT /api/packages
    rayjobs.py     Ray's job routes                               wire.py        Ray's shapes <-> ours
    upstream.py    Ray's dashboard over HTTP                      logs.py        joined, capped logs
    tail.py        the follow websocket                           ownapi.py      /moorage/v1/...
    openapi.py     route table -> OpenAPI 3.1                     proxy.py       /endpoints/<name>/...
    metrics.py     /metrics and /healthz
"""
