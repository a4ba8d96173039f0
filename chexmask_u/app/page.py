"""The page, in gradio: which control calls what, and what is shown of the answer."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr

from chexmask_u import storage
from chexmask_u.anatomy import FRAME
from chexmask_u.app import study, view
from chexmask_u.app.study import Choice, Seen
from chexmask_u.app.visitors import Visitors
from chexmask_u.calibration.calibration import Calibration
from chexmask_u.errors import InputError
from chexmask_u.images import bounds
from chexmask_u.model.network import Network
from chexmask_u.pictures.segmented import encode
from chexmask_u.record import ReadError

# Of the black square that a click on the picture puts there, in pixels of the frame, where there is none yet.
SQUARE = 240

# Most that the sliders give: an occluder as wide as a lung is high, and noise that leaves little of the image.
MOST_SIDE, MOST_NOISE, MOST_SAMPLES = 500, 120, 200

# Fewer draws lie together by chance.
LEAST_SAMPLES = 5

# Seconds between two sweeps of the uploads, and after which one is swept that nobody opened.
_SWEEP = (60, 300)

# Visitors who wait at most; the next one is told that the queue is full.
_QUEUE = 64

_DEMO = (
    "Made with the package's own weights, small and for demonstration; <code>--weights</code> takes the published ones."
)

_LABELS = {"picture": "↓ Picture", "masks": "↓ Masks", "csv": "↓ CSV"}

# What makes each file, how its name ends, and what browsers call its kind.
_FILES: dict[str, tuple[Callable[[Seen], bytes], str, str]] = {
    "picture": (lambda seen: encode(seen.result.picture(), ".png"), "overlay.png", "image/png"),
    "masks": (study.masks_zip, "masks.zip", "application/zip"),
    "csv": (study.csv, "measurements.csv", "text/csv"),
}

# Decoded here, so that no file of it lies on the server.
_SAVE = """(file) => {
  if (!file) return "";
  const { name, type, data } = JSON.parse(file);
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  return "";
}"""


@dataclass
class Desk:
    """Answers the page's events; one network for all visitors.

    Attributes:
        model: from `load_model`.
        calibration: of its weights; None gives no radii.
        demo: whether it has the weights of the package.
        max_side: longest side in pixels of an image that is decoded.
        uploads: folder in which gradio puts what visitors bring.
        local: whether visitors sit at this machine.
    """

    model: Network
    calibration: Calibration | None
    demo: bool
    max_side: int
    uploads: Path
    local: bool
    visitors: Visitors = field(default_factory=Visitors, init=False)

    def bring(self, turn: int, event: gr.EventData, request: gr.Request) -> tuple[str, int]:
        """A file that was uploaded: what speaks against it, and a number that grows with each image that is opened."""
        path, name = Path(str(event.path)).resolve(), _name(event)
        if not path.is_relative_to(self.uploads):
            return _refusal(name, ReadError("missing", "it was not uploaded here")), turn
        try:
            case = study.opened(path, name, self.max_side)
        except ReadError as error:
            return _refusal(name, error), turn
        finally:
            path.unlink(missing_ok=True)
            # Its folder is named by what was in it. There may be another file of the same content by now.
            with suppress(OSError):
                path.parent.rmdir()
        self.visitors.put(_session(request), case)
        return "", turn + 1

    def refuse(self, event: gr.EventData) -> str:
        """A file that is too large to be uploaded."""
        return _refusal(_name(event), bounds.too_many(bounds.max_bytes(self.max_side)))

    def pick(self, samples: int, seed: int | None, event: gr.EventData, request: gr.Request) -> list[Any]:
        """A sample drawing, as it is."""
        number = int(event.number)
        if number in range(len(study.SAMPLES)):
            self.visitors.put(_session(request), study.sample(number))
        return self.fresh(samples, seed, request)

    def fresh(self, samples: int, seed: int | None, request: gr.Request) -> list[Any]:
        """The session's image as it is, with the controls that change it set back."""
        return [*self._answer(request, _choice(0, 0, 0, 0.0, samples, seed)), 0, 0]

    def place(
        self, side: int, noise: float, samples: int, seed: int | None, event: gr.EventData, request: gr.Request
    ) -> list[Any]:
        """A black square where somebody clicked."""
        x, y = (min(max(int(value), 0), FRAME) for value in (event.x, event.y))
        side = side or SQUARE
        return [*self._answer(request, _choice(side, x, y, noise, samples, seed)), side, x, y]

    def change(
        self, side: int, x: int, y: int, noise: float, samples: int, seed: int | None, request: gr.Request
    ) -> list[Any]:
        """What a slider changes."""
        return self._answer(request, _choice(side, x, y, noise, samples, seed))

    def download(self, kind: str) -> Callable[..., str]:
        """The function that makes a file of what is shown, as JSON with its name, type and content."""
        make, ending, media = _FILES[kind]

        def file(side: int, x: int, y: int, noise: float, samples: int, seed: int | None, request: gr.Request) -> str:
            seen = self.visitors.get(_session(request)).see(
                _choice(side, x, y, noise, samples, seed), self.model, self.calibration
            )
            data = base64.b64encode(make(seen)).decode("ascii")
            return json.dumps({"name": f"{seen.stem}.{ending}", "type": media, "data": data})

        return file

    def leave(self, request: gr.Request) -> None:
        """A page was closed."""
        self.visitors.leave(_session(request))

    def _answer(self, request: gr.Request, choice: Choice) -> list[Any]:
        """Picture, numbers and refusal."""
        try:
            seen = self.visitors.get(_session(request)).see(choice, self.model, self.calibration)
        except (ReadError, InputError) as error:
            return [gr.skip(), gr.skip(), _refusal("", error)]
        return [view.show_picture(seen), view.show_numbers(seen), ""]


def build(desk: Desk) -> gr.Blocks:
    """The page; what it shows first is the first sample."""
    first = Visitors().get("").see(Choice(), desk.model, desk.calibration)
    one_by_one: dict[str, Any] = {
        "concurrency_id": "network",
        "concurrency_limit": 1,
        "api_visibility": "private",
        "show_progress": "hidden",
    }
    with gr.Blocks(title="CheXmask-U", analytics_enabled=False, fill_width=True, delete_cache=_SWEEP) as page:
        gr.HTML(view.head(desk.local), js_on_load=None)
        refusal = gr.HTML("", elem_id="refusal", js_on_load=None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=320):
                viewer = gr.HTML(
                    view.show_picture(first),
                    html_template=view.frame(first, bounds.max_bytes(desk.max_side)),
                    js_on_load=view.script(),
                    elem_id="viewer",
                )
            with gr.Column(scale=4, min_width=320, elem_id="controls"):
                gr.Markdown("**Make it harder.** Click on the picture to cover a part of it.")
                side = gr.Slider(0, MOST_SIDE, 0, step=10, label="Covered square, px")
                with gr.Row():
                    x = gr.Slider(0, FRAME, FRAME // 2, step=4, label="from the left", min_width=100)
                    y = gr.Slider(0, FRAME, FRAME // 2, step=4, label="from the top", min_width=100)
                noise = gr.Slider(0, MOST_NOISE, 0, step=2, label="Noise, grey levels")
                numbers = gr.HTML(view.show_numbers(first), elem_id="numbers", js_on_load=None)
                with gr.Row():
                    samples = gr.Slider(
                        LEAST_SAMPLES, MOST_SAMPLES, Choice().samples, step=5, label="Draws N", min_width=160
                    )
                    seed = gr.Number(0, precision=0, label="Seed", min_width=80)
                with gr.Row():
                    buttons = {kind: gr.Button(label, size="sm", min_width=90) for kind, label in _LABELS.items()}
                if desk.demo:
                    gr.HTML(f'<p class="small">{_DEMO}</p>', js_on_load=None)
        file = gr.Textbox(visible="hidden")
        turn = gr.State(0)
        shown: list[Any] = [viewer, numbers, refusal]
        controls: list[Any] = [side, x, y, noise, samples, seed]
        draws: list[Any] = [samples, seed]

        viewer.bring(
            desk.bring,
            turn,
            [refusal, turn],
            concurrency_id="read",
            concurrency_limit=1,
            trigger_mode="always_last",
            api_visibility="private",
        )
        viewer.refuse(desk.refuse, None, refusal, queue=False, api_visibility="private")
        turn.change(desk.fresh, draws, [*shown, side, noise], **one_by_one)
        viewer.pick(desk.pick, draws, [*shown, side, noise], trigger_mode="always_last", **one_by_one)
        viewer.place(
            desk.place, [side, noise, samples, seed], [*shown, side, x, y], trigger_mode="always_last", **one_by_one
        )
        for control in controls:
            # What is dragged is followed as fast as the network can.
            control.input(desk.change, controls, shown, trigger_mode="always_last", **one_by_one)
        for kind, button in buttons.items():
            button.click(desk.download(kind), controls, file, **one_by_one).then(None, file, file, js=_SAVE)
        page.unload(desk.leave)
    page.queue(max_size=_QUEUE, api_open=False)
    return page


def theme() -> gr.themes.Base:
    """Colours and fonts, none of which is fetched from anywhere."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "Arial", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Default(primary_hue="sky", neutral_hue="slate", spacing_size="sm", font=sans, font_mono=mono)


def _choice(side: int, x: int, y: int, noise: float, samples: int, seed: int | None) -> Choice:
    """What the controls say; without a square its place says nothing."""
    place = {"side": int(side), "x": int(x), "y": int(y)} if side else {}
    return Choice(samples=int(samples), seed=int(seed or 0), noise=float(noise), **place)


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


def _name(event: gr.EventData) -> str:
    """What somebody calls a file, without folders."""
    # A name on somebody's disk may hold half of a character.
    return PurePosixPath(str(event.name).encode(errors="replace").decode()).name or "image"


def _refusal(name: str, error: Exception) -> str:
    said = f"{name}: {error}" if name else str(error)
    reason = f" ({error.reason})" if isinstance(error, ReadError) else ""
    return f'<p role="alert">{html.escape(storage.redact(said + reason))}</p>'
