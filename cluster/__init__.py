"""Where Ray begins: observe nodes and jobs, bind a lease, launch and stop.

Ray internals (what is not public API) live in `rayapi` alone."""

if __name__ == "cluster":
    raise ImportError("'cluster' is a root folder of Moorage: import it as 'moorage.cluster'")
