"""Make the pictures of README and guides from what ``blemish demo`` wrote: ``python scripts/pictures.py demo-output``.

Above each verdict its photograph, a column for each texture: the clearest find of a kind that no column has yet. The
photographs are scikit-image's (``blemish datasets`` names their licences), the defects are painted.
With Chromium installed the page of ``blemish inspect -o`` is photographed as well.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import blemish

SIDE, GAP = 200, 8
PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"


def finds(demo: Path) -> Image.Image:
    models = sorted(demo.glob("*.blemish"))
    size = (len(models) * (SIDE + GAP) - GAP, 2 * SIDE + GAP)
    sheet, shown = Image.new("RGB", size, "white"), set[str]()
    for column, model in enumerate(models):
        test = demo / "data" / model.stem / "test"
        files = [path for path in sorted(test.glob("*/*.png")) if path.parent.name not in {"good", *shown}]
        verdict = max(blemish.load(model).many(files), key=lambda verdict: verdict.score)
        shown.add(Path(verdict.source or "").parent.name)
        for row, picture in enumerate((Image.fromarray(verdict.pixels), verdict.overlay())):
            resized = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(resized, (column * (SIDE + GAP), row * (SIDE + GAP)))
    return sheet


def page(demo: Path, chromium: str) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        judged, shot = Path(folder, "judged"), Path(folder, "page.png")
        arguments = ["inspect", str(demo / "brick.blemish"), str(demo / "data" / "brick" / "test"), "-o", str(judged)]
        subprocess.run([sys.executable, "-m", "blemish", *arguments], check=True, stdout=subprocess.DEVNULL)
        options = ("--headless", "--no-sandbox", "--window-size=1180,2000", f"--screenshot={shot}")
        subprocess.run([chromium, *options, (judged / "index.html").as_uri()], check=True, capture_output=True)
        with Image.open(shot) as image:
            return image.convert("RGB").crop((0, 380, 1180, 1640)).resize((826, 882), Image.Resampling.LANCZOS)


def main() -> None:
    demo, chromium = Path(sys.argv[1]), shutil.which("chromium") or shutil.which("google-chrome")
    PICTURES.mkdir(parents=True, exist_ok=True)
    finds(demo).save(PICTURES / "demo.webp", quality=82)
    if chromium:
        page(demo, chromium).save(PICTURES / "page.webp", quality=75)


if __name__ == "__main__":
    main()
