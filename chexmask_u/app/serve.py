"""The verb `app`: checks what can be wrong before anything heavy, and serves the page until it is interrupted."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable
from importlib import util
from pathlib import Path
from typing import Any

from chexmask_u import storage
from chexmask_u.app import space
from chexmask_u.errors import InputError
from chexmask_u.images import bounds
from chexmask_u.result import Result
from chexmask_u.settings import AppSettings

# Read by gradio when it is imported: no statistics, no word to the Hub, no node server, nothing of another program's.
_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_ALLOWED_PATHS": "",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

# What browsers may ask for: this server alone. gradio makes its templates with `new Function`.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'"


def serve(settings: AppSettings) -> str:
    """Serve the page until the process is interrupted; returns where it was.

    Raises:
        InputError: if gradio is missing, the address cannot be listened on, or there are no such weights.
    """
    if util.find_spec("gradio") is None:
        raise InputError('the page needs gradio: pip install -e ".[app]" in the project\'s folder')
    _check_address(settings.host, settings.port)
    from chexmask_u.use.segment import load
    from chexmask_u.weight_files import DEMO

    model, calibration = load(settings)
    with tempfile.TemporaryDirectory(prefix="chexmask-u-app-") as folder:
        os.environ |= _QUIET | {"GRADIO_TEMP_DIR": folder}
        from starlette.middleware import Middleware

        from chexmask_u.app import page, view

        local = settings.host in ("localhost", "::1") or settings.host.startswith("127.")
        desk = page.Desk(model, calibration, settings.weights == DEMO, settings.max_side, Path(folder).resolve(), local)
        blocks = page.build(desk)
        _, url, _ = blocks.launch(
            server_name=settings.host,
            server_port=settings.port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            inbrowser=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            max_file_size=bounds.max_bytes(settings.max_side),
            theme=page.theme(),
            css=view.style(),
            app_kwargs={"middleware": [Middleware(_Guarded)]},
        )
        try:
            print(f"CheXmask-U: {url} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            blocks.close(verbose=False)
    return url


def verb(settings: AppSettings) -> Result:
    """`chexmask-u app`."""
    if settings.space is not None:
        written = space.write(settings, settings.space)
        return Result({"space": written.url}, f"Space: {written.url}; `hf upload --repo-type space` publishes it")
    url = serve(settings)
    return Result({"url": url}, "The page is closed, and what people opened on it is gone")


class _Guarded:
    """ASGI middleware that tells browsers to ask this server alone."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Callable[..., Awaitable[None]]) -> None:
        async def guarded(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, receive, guarded)


def _check_address(host: str, port: int) -> None:
    """Raise InputError unless the address can be listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            # As the server does it: a page that was closed a moment ago is no obstacle.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        reason = "is in use; name another with --port" if error.errno == errno.EADDRINUSE else storage.explain(error)
        raise InputError(f"--host {host} --port {port}: {reason}") from error
