"""Pictures and reports of what the pool and its models did. Pure: data in, SVG or HTML text out.

Nothing here talks to the pool, reads a clock or imports Ray. matplotlib is imported by `figure` alone, on first use.
"""
