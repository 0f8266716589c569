"""Array in, array out: numba kernels, each beside a plain reference it is tested against.

Knows nothing of jobs, Ray, files or time."""

if __name__ == "kernels":
    raise ImportError("'kernels' is a root folder of Moorage: import it as 'moorage.kernels'")
