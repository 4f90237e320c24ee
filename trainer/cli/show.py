"""``trainer summary`` and ``trainer presets``: the networks and presets that there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trainer.cli.options import AT_LEAST_ONE, config_options, json_option, print_json, setting_text

if TYPE_CHECKING:
    from trainer.config.preset import Preset


@click.command(short_help="The layers of a network, with shapes and sizes.")
@click.option("--network", default="paper", show_default=True, help="Network.")
@click.option(
    "--classes", type=AT_LEAST_ONE, default=1000, show_default=True, help="Number of classes."
)
@config_options("channels")
@config_options("batch_size", default=128)
@json_option
def summary(network: str, classes: int, channels: int, batch_size: int, as_json: bool) -> None:
    """The layers of a network: output shapes, parameters, multiply-adds; memory.

    \b
    Example: trainer summary --network paper --classes 1000
    """
    from dataclasses import asdict

    from trainer.network.alexnet import NETWORKS, network_spec
    from trainer.network.summary import summarise

    spec = network_spec(network, classes=classes, channels=channels)
    table = summarise(spec)
    memory = table.training_bytes(batch_size)
    if as_json:
        values = {
            "network": network,
            "parameters": table.parameters,
            "multiply_adds": table.multiply_adds,
            "training_bytes": memory,
            "batch_size": batch_size,
            "layers": [asdict(row) for row in table.rows],
        }
        print_json(values)
        return
    click.echo(f"{network} ({', '.join(NETWORKS)}), input {spec.channels}×{spec.input_size}²")
    click.echo(f"{'layer':<16}{'kind':<20}{'output':<16}{'parameters':>12}{'multiply-adds':>16}")
    for row in table.rows:
        shape = "×".join(str(n) for n in row.output)
        click.echo(
            f"{row.layer:<16}{row.kind:<20}{shape:<16}{row.parameters:>12,}{row.multiply_adds:>16,}"
        )
    click.echo(f"{'total':<52}{table.parameters:>12,}{table.multiply_adds:>16,}")
    click.echo(
        f"memory: weights {table.weight_bytes / 1e6:.0f} MB; training at batch {batch_size} in "
        f"float32 about {memory / 1e9:.1f} GB (two optimiser buffers)"
    )


@click.command(short_help="The presets of trainer run; with NAME the details of one.")
@click.argument("name", required=False)
@json_option
def presets(name: str | None, as_json: bool) -> None:
    """The presets of `run --preset`; with NAME its settings, time and result.

    \b
    Example: trainer presets original-2012
    """
    from trainer.config import presets as recipes

    if name is not None:
        _show_preset(recipes.find(name), as_json)
        return
    if as_json:
        print_json({name: _preset_value(found) for name, found in recipes.PRESETS.items()})
        return
    for title, found in recipes.PRESETS.items():
        config = found.config
        click.echo(f"{title:<24}{found.summary}")
        click.echo(
            f"{'':<24}network {config.network}, {config.epochs} epochs, batch "
            f"{config.batch_size}, {config.optimizer} {config.lr:g}, {config.schedule}"
        )
    click.echo("\nDetails: trainer presets NAME")


_WORDS = ("summary", "prepare", "command", "time", "result")


def _preset_value(found: Preset) -> dict[str, Any]:
    from trainer.config.run_config import as_dict

    words = {name: getattr(found, name) for name in _WORDS}
    return words | {"notes": found.notes, "settings": as_dict(found.config)}


def _show_preset(found: Preset, as_json: bool) -> None:
    value = _preset_value(found)
    if as_json:
        print_json(value)
        return
    click.echo(f"{found.config.preset}: {found.summary}\n")
    click.echo(f"    {found.prepare}\n    {found.command}\n")
    for title, text in (("time", found.time), ("result", found.result), ("notes", found.notes)):
        if text:
            click.echo(click.wrap_text(f"{title}: {text}", 98, "", "    "))
    click.echo("\nsettings:")
    for setting, number in value["settings"].items():
        if setting != "preset":
            click.echo(f"  {setting:<20}{setting_text(number)}")
