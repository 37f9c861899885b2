"""Deploying: ``export``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from blemish.cli.app import command, print_result
from blemish.cli.options import AsJson, Machine, ModelFile, Weights


@command
def export(
    model: ModelFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.", show_default=False)],
    check: Annotated[
        Path | None, typer.Option(help="Folder of images that both are compared on; by default, textures.")
    ] = None,
    pixels: Annotated[
        Literal["auto", "uint8", "uint16"], typer.Option("--input", help="Type of the pixels that the file takes.")
    ] = "auto",
    weights: Weights = None,
    *,
    machine: Machine,
    as_json: AsJson = False,
) -> None:
    """One ONNX file for any program, checked against the model. Example: blemish export parts.blemish -o parts.onnx"""
    import hashlib
    from dataclasses import asdict

    from blemish.deploy.export import export as write
    from blemish.deploy.parity import pictures
    from blemish.run import check_writable

    check_writable(output)
    inspector = machine.load_learned(model, weights)
    with model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    images = pictures(check, inspector.preparation.white_level)
    parity = write(inspector, output, images, pixels=None if pixels == "auto" else pixels, made_from=digest)
    print_result({"model": str(output), **asdict(parity)}, as_json, f"{output}: {parity}")
