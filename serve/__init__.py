"""Inside a deployment: model hosts, batching and protocols."""

if __name__ == "serve":
    raise ImportError("'serve' is a root folder of Moorage: import it as 'moorage.serve'")
