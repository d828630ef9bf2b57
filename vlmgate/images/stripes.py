"""Read a very large picture a stripe at a time, smaller than it is: line scans of hundreds of megapixels.

Only where its rows lie in the file as they are: BMP, PGM, PPM, TGA and TIFF, 8 bits, without compression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image, TiffImagePlugin
from PIL.ImageFile import ImageFile as PillowImage

from vlmgate.images.formats import RefusedError

FEWEST_PIXELS = 100_000_000  # smaller pictures are read at once
_STRIPE = 32 << 20  # bytes
_BYTES = {"L": 1, "L;I": 1, "RGB": 3, "BGR": 3}  # of a pixel, by the way it is stored
_SIGNED = 2  # TIFF sample format


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows that lie one behind the other."""

    top: int
    bottom: int
    offset: int
    step: int  # bytes from a row to the next
    upwards: bool  # the lowest row comes first


@dataclass(frozen=True, slots=True)
class Stripes:
    """How a picture is read in stripes; call `of`, then `read`."""

    mode: str
    rawmode: str
    size: tuple[int, int]
    runs: tuple[_Run, ...]
    smaller: int  # times

    @classmethod
    def of(cls, image: PillowImage, least_side: int) -> Stripes | None:
        """Return how a page is read in stripes; None where it is not so large, or its rows do not lie there plainly.

        Its sides will not be shorter than `least_side` pixels; 0 = it must not be made smaller.
        """
        boxes = [tile.extents or (0, 0, 0, 0) for tile in image.tile]
        width, height = (max((box[side] for box in boxes), default=0) for side in (2, 3))  # before it is turned upright
        smaller = next((times for times in (8, 4, 2) if least_side and min(image.size) >= times * least_side), 1)
        if width * height < FEWEST_PIXELS or smaller == 1 or image.mode not in ("L", "RGB"):
            return None
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        if tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == _SIGNED:
            return None
        runs, modes = [], set()
        for (codec, _, offset, args), box in zip(image.tile, boxes, strict=True):
            rawmode, step, way = args if isinstance(args, tuple) else (args, 0, 1)
            if codec != "raw" or (box[0], box[2]) != (0, width) or rawmode not in _BYTES:
                return None
            modes.add(str(rawmode))
            runs.append(_Run(box[1], box[3], offset, step or width * _BYTES[rawmode], way < 0))
        runs.sort(key=lambda run: run.top)
        ends = [0, *(run.bottom for run in runs)]
        if len(modes) != 1 or [run.top for run in runs] != ends[:-1] or ends[-1] != height:
            return None
        return cls(image.mode, modes.pop(), (width, height), tuple(runs), smaller)

    @property
    def memory(self) -> tuple[int, int]:
        """Return the bytes that reading takes, and those that are kept."""
        kept = 4 * self.size[0] * self.size[1] // self.smaller**2
        return 2 * kept + 8 * _STRIPE, kept

    def read(self, stream: BinaryIO) -> Image.Image:
        """Return the picture as RGB, as it is stored, made smaller by averages."""
        width, height = self.size
        times = self.smaller
        rows = times * max(1, _STRIPE // (width * 3 * times))
        picture = Image.new("RGB", (-(-width // times), -(-height // times)))
        for top in range(0, height, rows):
            stripe = Image.new(self.mode, (width, min(rows, height - top)))
            for run in self.runs:
                first, last = max(top, run.top), min(top + stripe.height, run.bottom)
                if first < last:
                    stripe.paste(self._rows(stream, run, first, last), (0, first - top))
            picture.paste(stripe.reduce(times).convert("RGB"), (0, top // times))
        return picture

    def _rows(self, stream: BinaryIO, run: _Run, first: int, last: int) -> Image.Image:
        before = run.bottom - last if run.upwards else first - run.top  # rows of the run that come before these
        stream.seek(run.offset + before * run.step)
        data = stream.read((last - first) * run.step)
        size = (self.size[0], last - first)
        if len(data) < (last - first - 1) * run.step + self.size[0] * _BYTES[self.rawmode]:
            raise RefusedError("truncated")
        data = data.ljust((last - first) * run.step, b"\0")
        return Image.frombytes(self.mode, size, data, "raw", self.rawmode, run.step, -1 if run.upwards else 1)
