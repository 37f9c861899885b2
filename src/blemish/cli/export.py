"""Deploying: ``export``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from blemish.cli.app import command, print_result
from blemish.cli.options import AsJson, Machine, ModelFile, Quiet, Threads, Weights, check_suffix, parse_milliseconds


@command
def export(
    model: ModelFile,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write.", show_default=False)
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Folder of images that both are compared on; by default, textures.")
    ] = None,
    pixels: Annotated[
        Literal["auto", "uint8", "uint16"], typer.Option("--input", help="Type of the pixels that the file takes.")
    ] = "auto",
    grey: Annotated[
        bool, typer.Option("--grey", help="The file takes images of one channel, as grey cameras give.")
    ] = False,
    precision: Annotated[
        Literal["auto", "fp32", "int8", "bf16"],
        typer.Option(
            help="Of the network; int8 and bf16 need --check with good images, and are kept if they gain. By default "
            "fp32, or what the budget given to fit was kept in."
        ),
    ] = "auto",
    budget: Annotated[
        float | None,
        typer.Option(
            parser=parse_milliseconds, metavar="TIME", help="Most time of a verdict on this machine, such as 30ms."
        ),
    ] = None,
    web: Annotated[
        Path | None, typer.Option(help="Folder to write a page to that judges photographs in a browser, offline.")
    ] = None,
    onnxruntime_web: Annotated[
        Path | None, typer.Option(help="Where onnxruntime-web is, for --web; by default in node_modules.")
    ] = None,
    weights: Weights = None,
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """One ONNX file for any program, checked against the model. Example: blemish export parts.blemish -o parts.onnx"""
    import shutil
    import tempfile
    from dataclasses import asdict

    from blemish.data.readers import find_images
    from blemish.deploy.export import export as write
    from blemish.deploy.page import MODEL, find_runtime, write_browser_page
    from blemish.deploy.pictures import pictures
    from blemish.deploy.precision import check_measurable, convert, within_budget
    from blemish.errors import ConfigError
    from blemish.run import check_writable, file_digest, refuse_to_replace, written_atomically

    target = output or (web and web / MODEL)
    if target is None:
        raise ConfigError("say where to: -o parts.onnx for a file, --web FOLDER for a page with it, or both")
    runtime = find_runtime(onnxruntime_web) if web is not None else None
    compared = find_images(check) if check else []
    refuse_to_replace(target, {"the model": [model], "an image to compare on": compared})
    check_suffix(target, is_exported=True)
    if budget is not None and check is None:
        raise ConfigError("--budget is measured on images as you have them: name their folder with --check")
    inspector = Machine("cpu", threads, quiet=quiet).load_learned(model, weights)
    seen, kept = inspector.preparation, inspector.provenance.get("budget") or {}
    chosen = precision
    if chosen == "auto":
        chosen = kept["precision"] if kept.get("precision") in ("int8", "bf16") else "fp32"
    if chosen != "fp32":
        why = " (fit kept its budget in it, and --precision fp32 does without)" * (precision == "auto")
        check_measurable(chosen, len(compared), seen, f"name their folder with --check{why}")
    if web is not None and (seen.tiling is not None or seen.roi is not None):
        raise ConfigError(f"{model} judges tiles or a region of interest, and a page whole images: leave --web out")
    check_writable(target)
    images = pictures(check, seen.white_level, grey)
    with tempfile.TemporaryDirectory(prefix=".blemish-", dir=target.parent) as folder:
        made = Path(folder) / MODEL
        parity = write(
            inspector,
            made,
            images,
            pixels=None if pixels == "auto" else pixels,
            grey=grey,
            made_from=file_digest(model),
        )
        facts, words = {"model": str(target), **asdict(parity)}, f"{target}: {parity}"
        if chosen != "fp32" and check is not None:
            whole = {*map(str, compared)}  # and not of another size
            good = {name: image for name, image in images.items() if name in whole}
            cost = convert(made, made, chosen, good, threads)
            facts, words = facts | {"precision_cost": asdict(cost)}, f"{words}\n{cost}"
        if budget is not None:
            measured, told = within_budget(made, budget, compared, threads)
            facts, words = facts | measured, f"{words}\n{told}"
        with written_atomically(target) as temporary:
            shutil.copyfile(made, temporary)
    if web is not None and runtime is not None:
        write_browser_page(web, runtime, target, inspector.promise)
        words += f"\n{web}: python -m http.server -d {web}"
    print_result(facts, as_json, words)
