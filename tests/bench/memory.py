"""What decoding a picture takes at its peak, beside what is held ready for it.

    python -m tests.bench.memory [--side 4000]

Linux only. One picture of noise over a gradient is read in each kind of file; the growth of the process at its peak is
divided by the pixels and compared with `vlmgate.images.memory`, which must not hold less.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.bench._timing import table

_ONE = """
import sys
from pathlib import Path
from PIL import Image
from vlmgate.config import ImageConfig
from vlmgate.data import Picture, Source
from vlmgate.images import pages
small, path = map(Path, sys.argv[1:])
asked = []
list(pages.open_pages(Source("small", small), ImageConfig()))  # loads what is loaded once
def now(name):
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) * 1024
before = now("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
config = ImageConfig(image_memory=64.0)
for result, _ in pages.pages_of(Source("a", path), config, lambda peak, kept: asked.append(peak)):
    assert isinstance(result, Picture), result
print(now("VmHWM") - before, asked[0])
"""


def kinds(side: int) -> Iterator[tuple[str, Image.Image | np.ndarray[Any, Any], dict[str, Any]]]:
    """Yield file name, pixels and options of the writer."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(20, 220, side)[None, :, None] + rng.integers(-12, 12, (side, side, 3))
    rgb = Image.fromarray(ramp.astype(np.uint8))
    grey = np.asarray(rgb.convert("L"))
    yield "a.jpg", rgb, {"quality": 85}
    yield "progressive.jpg", rgb, {"quality": 85, "progressive": True, "subsampling": 0}
    yield "grey.jpg", Image.fromarray(grey), {"quality": 85}
    yield "cmyk.jpg", rgb.convert("CMYK"), {"quality": 85}
    yield "a.png", rgb, {"compress_level": 1}
    yield "grey.png", Image.fromarray(grey), {"compress_level": 1}
    yield "alpha.png", rgb.convert("RGBA"), {"compress_level": 1}
    yield "16.png", Image.fromarray(grey.astype(np.uint16) * 16), {"compress_level": 1}
    yield "palette.png", rgb.quantize(64), {"compress_level": 1}
    yield "a.tif", rgb, {}
    yield "lzw.tif", rgb, {"compression": "tiff_lzw"}
    yield "deflate.tif", rgb, {"compression": "tiff_adobe_deflate"}
    yield "jpeg.tif", rgb, {"compression": "jpeg"}
    yield "16.tif", Image.fromarray(grey.astype(np.uint16) * 16), {}
    yield "float.tif", Image.fromarray(grey.astype(np.float32)), {}
    yield "int.tif", Image.fromarray(grey.astype(np.int32) * 100), {}
    yield "rgb16.ppm", np.asarray(rgb).astype(">u2") * 16, {}
    yield "a.ppm", rgb, {}
    yield "a.bmp", rgb, {}
    yield "a.webp", rgb, {"quality": 80, "method": 0}
    yield "lossless.webp", rgb, {"lossless": True, "quality": 0, "method": 0}
    yield "a.avif", rgb, {"quality": 70, "speed": 10}
    yield "a.jp2", rgb, {"quality_mode": "rates", "quality_layers": [10]}
    yield "a.gif", rgb.quantize(64), {}
    yield "a.tga", rgb, {}
    yield "a.qoi", rgb, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4000)
    side = parser.parse_args().side
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, pixels, options in kinds(side):
            path, small = Path(folder, name), Path(folder, f"small_{name}")
            if isinstance(pixels, Image.Image):
                pixels.save(path, **options)
                pixels.crop((0, 0, 64, 64)).save(small, **options)
            else:
                for one, values in ((path, pixels), (small, pixels[:64, :64])):
                    head = f"P6 {values.shape[1]} {values.shape[0]} 65534\n".encode()
                    one.write_bytes(head + values.tobytes())
            done = subprocess.run([sys.executable, "-c", _ONE, str(small), str(path)], capture_output=True, text=True)
            if done.returncode:
                rows.append([name, done.stderr.strip().splitlines()[-1], ""])
                continue
            used, held = map(int, done.stdout.split())
            rows.append([name, f"{used / side**2:.1f}", f"{held / side**2:.1f}", "" if used <= held else "too little"])
            path.unlink()
    print(table(["bytes a pixel", "used", "held ready", ""], rows))


if __name__ == "__main__":
    main()
