"""The script that keeps HAProxy's listeners on loopback (G4), run for real against a template's lines."""

from __future__ import annotations

import subprocess
from pathlib import Path

from moorage.cluster import haproxy

CONFIG = """\
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
listen stats
  bind *:8404
frontend open
    bind 0.0.0.0:9000 proto h2
    server node-1 127.0.0.1:30000 check
"""


def test_every_open_bind_becomes_loopback_before_haproxy_starts(tmp_path: Path) -> None:
    variables = haproxy.environment(tmp_path / "ha", 9101, 8404)
    script, config = Path(variables["RAY_SERVE_HAPROXY_BINARY_PATH"]), tmp_path / "haproxy.cfg"
    real = script.read_text().rsplit("exec $tied ", 1)[1].split(' "$@"')[0].strip()
    assert Path(real.strip("'")).is_file()
    script.write_text(script.read_text().replace(real, "echo"))  # what it would have become
    config.write_text(CONFIG)
    done = subprocess.run(
        [script, "-db", "-f", config, "-sf", "7"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"-db -f {config} -sf 7"
    binds = [line.split()[1] for line in config.read_text().splitlines() if line.strip().startswith("bind")]
    assert binds == ["127.0.0.1:9101", "127.0.0.1:8000", "127.0.0.1:8404", "127.0.0.1:9000"]
    assert "server node-1 127.0.0.1:30000 check" in config.read_text()


def test_a_home_whose_socket_the_kernel_could_not_name_is_refused() -> None:
    """Ray adds the node id (56 characters) to the path, HAProxy its pid: 107 bytes are not many."""
    assert haproxy.available(Path("/home/" + "u" * 20 + "/ha"))
    assert not haproxy.available(Path("/home/" + "u" * 30 + "/ha"))


def test_haproxy_itself_accepts_the_script(tmp_path: Path) -> None:
    script = haproxy.environment(tmp_path / "ha", 9101, 8404)["RAY_SERVE_HAPROXY_BINARY_PATH"]
    assert (
        "HAProxy version" in subprocess.run([script, "-v"], capture_output=True, text=True, check=True).stdout
    )
