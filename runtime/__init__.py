"""The control plane, its front door, and the rooms around it: features, registry, telemetry.

`control`, `frontdoor` and `pool` never import Ray: a Ray driver dies with the GCS, the control plane must not."""

if __name__ == "runtime":
    raise ImportError("'runtime' is a root folder of Moorage: import it as 'moorage.runtime'")
