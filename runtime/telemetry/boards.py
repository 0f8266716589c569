"""Grafana boards and a Prometheus configuration for a pool's metrics, as plain data. Pure: no files, no network.

Formats: Grafana's dashboard JSON model (schemaVersion 39, `timeseries` and `stat` panels), Prometheus' configuration
file and Grafana's provisioning files, each as in their own documentation. The names are those of docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
SCRAPE_S = 10


@dataclass(frozen=True, slots=True)
class Panel:
    """`asks`: (PromQL, legend) of each line. `width` of 24 columns."""

    title: str
    unit: str
    asks: tuple[tuple[str, str], ...]
    about: str = ""
    width: int = 12
    kind: str = "timeseries"
    stacked: bool = False


def _quantiles(metric: str, by: str = "") -> tuple[tuple[str, str], ...]:
    per = f"le, {by}" if by else "le"
    name = f" {{{{{by}}}}}" if by else ""
    return tuple(
        (f"histogram_quantile({q}, sum by ({per}) (rate({metric}_bucket[5m])))", f"p{round(q * 100)}{name}")
        for q in (0.5, 0.95)
    )


POOL = (
    Panel(
        "GPUs held of those there are",
        "percentunit",
        (("1 - moorage_pool_gpus_free / moorage_pool_gpus", "held"),),
        width=6,
        kind="stat",
    ),
    Panel("Jobs that wait", "none", (("sum(moorage_queue_jobs)", "waiting"),), width=6, kind="stat"),
    Panel("Ray answers", "bool_yes_no", (("moorage_ray_reachable", ""),), width=6, kind="stat"),
    Panel("Without or beyond a lease", "none", (("sum(moorage_guard_findings)", ""),), width=6, kind="stat"),
    Panel(
        "GPUs by team",
        "none",
        (("moorage_team_gpus_held", "{{team}}"), ("moorage_pool_gpus", "all there are")),
        "Leased to the team and the teams below it.",
        stacked=False,
    ),
    Panel(
        "GPUs beyond quota",
        "none",
        (("moorage_team_gpus_borrowed", "{{team}}"),),
        "What a team borrows now; it is taken back from preemptible jobs when its owner asks.",
        stacked=True,
    ),
    Panel(
        "Why jobs wait",
        "none",
        (("moorage_queue_jobs", "{{reason}}"),),
        "The rule that binds, as `moorage why JOB` says it.",
        stacked=True,
    ),
    Panel("Jobs that wait, by team", "none", (("moorage_team_jobs_waiting", "{{team}}"),), stacked=True),
    Panel(
        "Time to a lease",
        "s",
        _quantiles("moorage_job_wait_seconds"),
        "From when a job began to wait; each attempt counts.",
    ),
    Panel(
        "Use of limits",
        "percentunit",
        (("moorage_team_gpus_held / (moorage_team_gpus_limit > 0)", "{{team}}"),),
        "Teams with a limit; at 100% the next job waits.",
    ),
    Panel(
        "Jobs by state",
        "none",
        (('moorage_jobs{state=~"PENDING|ADMITTED|STARTING|RUNNING|PREEMPTING"}', "{{state}}"),),
    ),
    Panel("Nodes", "none", (("moorage_nodes", "{{state}}"),), stacked=True),
    Panel(
        "Dollars per hour",
        "currencyUSD",
        (("rate(moorage_team_cost_dollars_total[15m]) * 3600", "{{team}}"),),
        stacked=True,
    ),
    Panel(
        "GPU-hours per hour",
        "none",
        (("rate(moorage_team_gpu_seconds_total[15m])", "{{team}}"),),
        stacked=True,
    ),
)

CONTROL = (
    Panel("Leads", "bool_yes_no", (("moorage_leader", "{{instance}}"),), width=8, kind="stat"),
    Panel(
        "Generation",
        "none",
        (("moorage_leader_generation", "{{instance}}"),),
        "Rises with each takeover and restart.",
        width=8,
        kind="stat",
    ),
    Panel("Since the last round", "s", (("moorage_tick_age_seconds", ""),), width=8, kind="stat"),
    Panel("One round of the loop", "s", _quantiles("moorage_tick_seconds")),
    Panel("One plan and its application", "s", _quantiles("moorage_plan_seconds")),
    Panel(
        "Effects on Ray that are not done",
        "none",
        (("moorage_effects_open", "{{kind}}"),),
        "They are repeated until they are; a line that stays up is something that Ray does not do.",
    ),
    Panel(
        "Tries that failed per minute",
        "none",
        (("rate(moorage_effect_failures_total[5m]) * 60", "{{kind}}"),),
    ),
    Panel("Preemptions per hour", "none", (("rate(moorage_preemptions_total[1h]) * 3600", "told to leave"),)),
    Panel(
        "What the guard found",
        "none",
        (
            ("moorage_guard_findings", "open: {{kind}}"),
            ("increase(moorage_guard_warned_total[1h])", "warned within an hour: {{kind}}"),
            ("increase(moorage_guard_stopped_total[1h])", "stopped within an hour: {{kind}}"),
        ),
    ),
    Panel("The guard sees", "bool_yes_no", (("moorage_guard_sees", ""),), width=6, kind="stat"),
    Panel(
        "The audit record, entries per minute",
        "none",
        (("sum by (kind) (rate(moorage_events_total[5m])) * 60", "{{kind}}"),),
        width=18,
    ),
    Panel(
        "Requests per second",
        "reqps",
        (("sum by (route, status) (rate(moorage_http_requests_total[5m]))", "{{route}} {{status}}"),),
    ),
    Panel("Time to answer", "s", _quantiles("moorage_http_request_seconds", "route")),
)
BOARDS = {
    "moorage-pool": ("Moorage: the pool", POOL),
    "moorage-control": ("Moorage: the control plane", CONTROL),
}


def board(uid: str) -> dict[str, Any]:
    """The dashboard of that name (of BOARDS) as Grafana's JSON."""
    title, panels = BOARDS[uid]
    return {
        "uid": uid,
        "title": title,
        "tags": ["moorage"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "tags": ["moorage"],
                "title": "Moorage",
                "asDropdown": False,
                "keepTime": True,
            }
        ],
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "hide": 0,
                }
            ]
        },
        "panels": _laid_out(panels),
    }


def _laid_out(panels: tuple[Panel, ...]) -> list[dict[str, Any]]:
    found, x, y, tallest = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        height = 4 if panel.kind == "stat" else 8
        if x + panel.width > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        found.append(_panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": height}))
        x, tallest = x + panel.width, max(tallest, height)
    return found


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    drawn: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "timeseries":
        drawn["custom"] = {
            "fillOpacity": 40 if panel.stacked else 0,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
        options: dict[str, Any] = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        options = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "none",
            "graphMode": "area",
            "textMode": "auto",
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": drawn, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": SOURCE,
                "expr": ask,
                "legendFormat": legend or "__auto",
            }
            for i, (ask, legend) in enumerate(panel.asks)
        ],
    }


def prometheus(target: str, token_file: str, ray_discovery: str) -> dict[str, Any]:
    """Prometheus' configuration: the pool at `target` (host:port) with a token from a file, and the nodes of Ray."""
    return {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "scrape_configs": [
            {
                "job_name": "moorage",
                "authorization": {"credentials_file": token_file},
                "static_configs": [{"targets": [target]}],
            },
            {"job_name": "ray", "file_sd_configs": [{"files": [ray_discovery]}]},
        ],
    }


def grafana_source(url: str) -> dict[str, Any]:
    """Grafana's provisioning of the data source."""
    source = {"name": "Prometheus", "type": "prometheus", "url": url, "isDefault": True, "access": "proxy"}
    return {"apiVersion": 1, "datasources": [source]}


def grafana_boards(folder: str) -> dict[str, Any]:
    """Grafana's provisioning of the boards in `folder`."""
    provider = {"name": "Moorage", "folder": "Moorage", "type": "file", "options": {"path": folder}}
    return {"apiVersion": 1, "providers": [provider]}
