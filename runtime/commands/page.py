"""`moorage page`: the address of the pool's web page, with the token behind its '#'."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from urllib.parse import quote

import click

from moorage.runtime.commands import shared


@click.command(epilog="\b\nExamples:\n  moorage page --open\n  moorage page nightly-train --as research")
@click.argument("job", required=False)
@click.option("--open", "opened", is_flag=True, help="Open it in the browser of this machine.")
@click.option("--no-token", is_flag=True, help="Leave the token out: the page asks for it.")
@shared.pool_options
def page(
    job: str | None, opened: bool, no_token: bool, home: Path | None, principal: str, as_json: bool
) -> None:
    """Print the address of the pool's page, or of JOB on it.

    The token stands behind the '#', which browsers never send to anybody; the page takes it out of the address bar. Who
    has the address has the token's rights: treat it as you treat the token.
    """
    with shared.connect(home, principal) as client:
        to = "/" if job is None else f"/job/{quote(client.job(job)['job_id'], safe='')}"
        address = f"{client.url}/#" + (to if no_token else f"token={client.token}&to={quote(to, safe='/')}")
    if as_json:
        shared.print_json({"url": address})
    else:
        click.echo(address)
    if opened and not webbrowser.open(address):
        raise click.ClickException("No browser was found here: open the address above in one.")
