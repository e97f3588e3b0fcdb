"""The interactive demo: `python -m codiffuse.demo` serves a page to drop a photograph on and watch its restoration.

The page is for this machine: nothing is shared, nothing is reported to anyone, no font or script comes from elsewhere.
"""

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from codiffuse.data.measurements import SAMPLE_SIGMA, SimulatedBlur
from codiffuse.data.sources import sources
from codiffuse.inference.live import Choices, time_note, updates
from codiffuse.inference.pictures import WHITE_SPREAD, to_image
from codiffuse.operators.blur import BlurOperator
from codiffuse.simulate.motion import RandomPathKernels

METHODS = {
    "fast_em": "Fast EM, several runs: best",
    "fast_em_once": "Fast EM, one run: faster",
    "diffusion_em": "Diffusion EM: slow",
}
# Small pictures fill their field, and none of their pixels is invented.
STYLE = ".fit img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }"
DOWNLOADS = {"restored": "Restored picture", "kernel_file": "Kernel", "report": "Report (zip)"}
LONGEST_SIDES = {"full size": None, "2048 px": 2048, "1024 px": 1024, "512 px": 512}


def main() -> None:
    """Entry point of `python -m codiffuse.demo`."""
    parser = argparse.ArgumentParser(prog="codiffuse.demo", description="Restore a photograph in the browser.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, help="port, instead of the first free one from 7860")
    arguments = parser.parse_args()
    # Read by gradio and by what it imports, so they have to be there first.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio
        from starlette.middleware import Middleware
    except ImportError:
        sys.exit("error: Expected the package gradio for the demo, found none; run pip install 'codiffuse[demo]'.")
    from codiffuse.api import restore

    theme = gradio.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    with tempfile.TemporaryDirectory(prefix="codiffuse-demo-") as folder:
        page = build(restore, Path(folder))
        try:
            _, url, _ = page.launch(
                server_name=arguments.host,
                server_port=arguments.port,
                share=False,
                ssr_mode=False,
                quiet=True,  # it recommends public links
                prevent_thread_lock=True,
                footer_links=[],
                theme=theme,
                css=STYLE,
                app_kwargs={"middleware": [Middleware(_OwnOriginOnly)]},
            )
        except OSError as error:
            sys.exit(f"error: {error}")
        print(f"Codiffuse is at {url} on this machine; Ctrl+C ends it.", flush=True)
        page.block_thread()


def build(restore: Callable[..., Any], folder: Path) -> Any:
    """The page, as `gradio.Blocks`.

    Args:
        restore: `codiffuse.restore`.
        folder: results are kept here, one folder a browser session.
    """
    import gradio as gr

    runs: dict[str, threading.Event] = {}

    with gr.Blocks(title="Codiffuse", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# Codiffuse\nDrop a blurred photograph; its sharp version and the blur are found together.")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                photo = gr.Image(label="Photograph", type="filepath", image_mode=None, sources=["upload", "clipboard"])
                sample = gr.Button("Use a blurred sample", size="sm")
                inputs = _settings(gr)
                note = gr.Markdown()
                with gr.Row():
                    start = gr.Button("Restore", variant="primary")
                    stop = gr.Button("Stop", variant="stop", interactive=False)
            with gr.Column(scale=2, min_width=320):
                parts = _results(gr)

        def run(
            path: str | None,
            method: str,
            kernel_size: int,
            noise: float,
            num_samples: int,
            longest: str,
            request: gr.Request,
        ) -> Iterator[dict]:
            cancelled = runs[request.session_hash] = threading.Event()
            choices = Choices(method, kernel_size or None, noise or None, num_samples, LONGEST_SIDES[longest])
            for news in updates(path, choices, restore, cancelled, folder / request.session_hash):
                running = news.pop("running")
                shown = {parts[name]: _change(gr, name, value) for name, value in news.items()}
                yield shown | {start: gr.update(interactive=not running), stop: gr.update(interactive=running)}

        def cancel(request: gr.Request) -> None:
            if request.session_hash in runs:
                runs[request.session_hash].set()

        start.click(run, [photo, *inputs], [*parts.values(), start, stop])
        stop.click(cancel, queue=False)
        page.unload(cancel)
        sample.click(lambda: sample_photograph(folder), None, photo)
        *_, num_samples, longest = inputs
        for part in (photo, num_samples, longest):
            part.change(
                lambda path, samples, longest: time_note(path, samples, LONGEST_SIDES[longest]),
                [photo, num_samples, longest],
                note,
                show_progress="hidden",
            )
    return page


def sample_photograph(folder: Path) -> str:
    """The path of a packaged picture, blurred here by camera motion that the method does not know."""
    blurred = SimulatedBlur(
        sources("sample:coffee"), RandomPathKernels(17), SAMPLE_SIGMA, BlurOperator("unknown"), crop=128
    )
    path = folder / "sample.png"
    to_image(blurred.load(0).y).save(path)
    return str(path)


def _settings(gr: Any) -> list[Any]:
    """The fields of `Choices` on the page, in their order."""
    with gr.Accordion("Settings", open=False):
        return [
            gr.Dropdown([(text, name) for name, text in METHODS.items()], value="fast_em", label="Method"),
            gr.Number(0, label="Kernel size, px", minimum=0, precision=0, info="Longer than the blur; 0: automatic."),
            gr.Number(0, label="Noise level, of 255", minimum=0, info="0: estimated from the photograph."),
            gr.Slider(1, 8, value=4, step=1, label="Samples", info="More: better, slower; from 2 on with uncertainty."),
            gr.Dropdown(list(LONGEST_SIDES), value="full size", label="Longest side", info="Smaller is faster."),
        ]


def _results(gr: Any) -> dict[str, Any]:
    """The parts of the page that `updates` fills, by name."""
    # Not gradio's own buttons, of which one shares a picture.
    shown = {"interactive": False, "elem_classes": "fit", "buttons": ["download", "fullscreen"]}
    parts = {"status": gr.HTML("Nothing restored yet.")}
    with gr.Row():
        parts["estimate"] = gr.Image(label="Estimate", scale=2, height=320, **shown)
        parts["kernel"] = gr.Image(label="Kernel", scale=1, height=320, **shown)
    parts["verdict"] = gr.HTML()
    parts["result"] = gr.ImageSlider(label="Before and after", interactive=False, visible=False)
    spread = f"Uncertainty: standard deviation, white = {WHITE_SPREAD}"
    parts["spread"] = gr.Image(label=spread, height=320, visible=False, **shown)
    with gr.Row():
        for name, text in DOWNLOADS.items():
            parts[name] = gr.DownloadButton(text, interactive=False)
    return parts


def _change(gr: Any, name: str, value: Any) -> Any:
    """The new value of a part of the page, which is there, or of use, only while it has one."""
    if name in DOWNLOADS:
        return gr.update(value=value, interactive=value is not None)
    return gr.update(value=value, visible=value is not None) if name in ("result", "spread") else value


class _OwnOriginOnly:
    """ASGI middleware: the browser may load from this server alone, whatever the page asks for."""

    policy = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], (b"content-security-policy", self.policy)]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


if __name__ == "__main__":
    main()
