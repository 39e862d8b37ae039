"""Files of the web directory, of which there are none yet: that is 404, as for any file that is not there."""

from __future__ import annotations

from xapi.http.registry import handler
from xapi.http.server.exchange import Refusal, Response
from xapi.http.visit import Visit


@handler("get_root", lacking=True)
async def get_root(visit: Visit) -> Response:
    """Say that there is nothing."""
    raise Refusal(404, "there is nothing here; XenAPI calls are POST requests")
