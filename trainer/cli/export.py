"""``trainer export``: a network for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from trainer.cli.options import FILE, checkpoint_option, json_option, print_json
from trainer.interrupt import guard


@click.command(short_help="A network for other programs: ONNX, torch.export, safetensors.")
@checkpoint_option
@click.option(
    "--format",
    type=click.Choice(["onnx", "torch-export", "safetensors"]),
    default="onnx",
    show_default=True,
    help="Format; safetensors: weights alone.",
)
@click.option("--out", type=FILE, help="Output file.  [default: beside the checkpoint]")
@json_option
def export(checkpoint: Path, format: str, out: Path | None, as_json: bool) -> None:
    """Writes the network for other programs, and a JSON file that describes its input.

    The file is opened again and compared with the checkpoint.

    \b
    Example: trainer export --checkpoint runs/small/best.pt --format onnx
    """
    from trainer.inference.export import export as write

    guard.folders.append((out or checkpoint).parent)
    done = write(checkpoint, format, out)
    if as_json:
        value = {
            "file": str(done.path),
            "description": str(done.description),
            "mean": None if done.mean is None else str(done.mean),
            "difference": done.difference,
        }
        print_json(value)
        return
    beside = [done.description, *([] if done.mean is None else [done.mean])]
    click.echo(f"{done.path}; beside it {' and '.join(path.name for path in beside)}")
    if done.difference is not None:
        click.echo(f"its logits differ from the checkpoint's by {done.difference:.1g} at most")
