"""What libtiff complains of while it decodes strips: broken codes that Pillow, which asks for none of it, passes over.

Pillow brings libtiff with it and has no way to its messages, so it is called directly. Where it cannot be found, as on
Windows, where it is part of Pillow's own binary, nothing is complained of.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, features

from vlmgate.images.formats import printable

_HARMLESS = (b"Old-style LZW", b"Try to decode (read) fax Group 3 data without EOL", b"Deprecated and troublesome")
_LARGEST = 1 << 30  # bytes of a strip or tile; a hostile file may call it anything
_LONGEST = 200  # bytes of a message
_HELD = ctypes.c_void_p

_Note = ctypes.CFUNCTYPE(ctypes.c_int, _HELD, _HELD, ctypes.c_char_p, ctypes.c_char_p, _HELD)
_Transfer = ctypes.CFUNCTYPE(ctypes.c_int64, _HELD, _HELD, ctypes.c_int64)
_Seek = ctypes.CFUNCTYPE(ctypes.c_uint64, _HELD, ctypes.c_int64, ctypes.c_int)
_Close = ctypes.CFUNCTYPE(ctypes.c_int, _HELD)
_Size = ctypes.CFUNCTYPE(ctypes.c_uint64, _HELD)
_Map = ctypes.CFUNCTYPE(ctypes.c_int, _HELD, _HELD, _HELD)
_Unmap = ctypes.CFUNCTYPE(None, _HELD, _HELD, ctypes.c_uint64)


@cache
def _library() -> ctypes.CDLL | None:
    """Return the libtiff that Pillow has loaded, if it can be called; its lines no longer reach the terminal."""
    if not features.check_codec("libtiff"):  # which loads it
        return None
    try:
        library = ctypes.CDLL(str(_place()))
        library.TIFFSetErrorHandler(None)
        library.TIFFOpenOptionsAlloc.restype = _HELD
        library.TIFFOpenOptionsFree.argtypes = [_HELD]
        for name in ("TIFFOpenOptionsSetErrorHandlerExtR", "TIFFOpenOptionsSetWarningHandlerExtR"):
            getattr(library, name).argtypes = [_HELD, _Note, _HELD]
        library.TIFFClientOpenExt.restype = _HELD
        library.TIFFClientOpenExt.argtypes = [
            *(ctypes.c_char_p, ctypes.c_char_p, _HELD, _Transfer, _Transfer, _Seek, _Close, _Size, _Map, _Unmap, _HELD)
        ]
        library.TIFFSetSubDirectory.argtypes = [_HELD, ctypes.c_uint64]
        for name in ("TIFFStripSize", "TIFFTileSize"):
            getattr(library, name).argtypes, getattr(library, name).restype = [_HELD], ctypes.c_int64
        for name in ("TIFFReadEncodedStrip", "TIFFReadEncodedTile"):
            getattr(library, name).argtypes = [_HELD, ctypes.c_uint32, _HELD, ctypes.c_int64]
            getattr(library, name).restype = ctypes.c_int64
        library.TIFFClose.argtypes = [_HELD]
    except (OSError, AttributeError, LookupError):  # an older one, or none that can be called
        return None
    return library


def _place() -> Path:
    """Return the file that libtiff was loaded from; raises `LookupError`."""
    if sys.platform.startswith("linux"):
        names = re.findall(r"/\S*libtiff[^/\s]*\.so[^\s]*", Path("/proc/self/maps").read_text())
        return Path(names[0])  # IndexError is a LookupError
    bundled = sorted((Path(Image.__file__).parent / ".dylibs").glob("libtiff*.dylib"))  # macOS
    return bundled[0]


def be_quiet() -> None:
    """Keep libtiff from printing what it meets in a damaged file."""
    _library()


def first_complaint(stream: BinaryIO, directory: int, pieces: int, *, tiled: bool) -> str:
    """Decode every strip or tile of the page whose directory lies there; return what libtiff says, "" for nothing."""
    library = _library()
    if library is None:
        return ""
    reader = _Reader(stream)
    stream.seek(0)  # it reads on from where it stands
    options = library.TIFFOpenOptionsAlloc()
    library.TIFFOpenOptionsSetErrorHandlerExtR(options, reader.note, None)
    library.TIFFOpenOptionsSetWarningHandlerExtR(options, reader.note, None)
    handle = library.TIFFClientOpenExt(b"page", b"r", None, *reader.callbacks, options)
    library.TIFFOpenOptionsFree(options)
    if not handle:
        return ""  # what is wrong with the directory, Pillow says
    try:
        if not library.TIFFSetSubDirectory(handle, directory):
            return ""
        reader.said.clear()
        size = (library.TIFFTileSize if tiled else library.TIFFStripSize)(handle)
        decode = library.TIFFReadEncodedTile if tiled else library.TIFFReadEncodedStrip
        if not 0 < size <= _LARGEST:
            return ""
        buffer = ctypes.create_string_buffer(size)
        for number in range(pieces):
            if decode(handle, number, buffer, size) < 0 or reader.said:
                break
        else:
            return ""
        return reader.said[0] if reader.said else "cannot be decoded"
    finally:
        library.TIFFClose(handle)


class _Reader:
    """The callbacks through which libtiff reads a stream and says what it meets; no exception may leave them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.said: list[str] = []
        self.note = _Note(self._note)
        kinds: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
            (_Transfer, self._read),
            (_Transfer, lambda _handle, _data, _size: -1),  # never written to
            (_Seek, self._seek),
            (_Close, lambda _handle: 0),
            (_Size, lambda _handle: self._seek_from(0, 2)),
            (_Map, lambda _handle, _base, _size: 0),  # not mapped into memory
            (_Unmap, lambda _handle, _base, _size: None),
        )
        self.callbacks = [kind(function) for kind, function in kinds]  # held here while libtiff may call them

    def _note(self, _handle: int, _user: int, _module: bytes | None, words: bytes, values: int) -> int:
        """Take a message, which comes as a pattern of `printf` and the list of its values."""
        if not words.startswith(_HARMLESS):
            text = ctypes.create_string_buffer(_LONGEST)
            ctypes.CDLL(None).vsnprintf(text, ctypes.c_size_t(_LONGEST), words, _HELD(values))
            self.said.append(printable(text.value.decode("ascii", "replace")))
        return 1

    def _read(self, _handle: int, data: int, size: int) -> int:
        try:
            found = self._stream.read(size)
            ctypes.memmove(data, found, len(found))
            return len(found)
        except Exception:
            return -1

    def _seek(self, _handle: int, offset: int, whence: int) -> int:
        return self._seek_from(offset, whence)

    def _seek_from(self, offset: int, whence: int) -> int:
        try:
            position = self._stream.tell()
            end = self._stream.seek(offset, whence)
            if whence == 2:
                self._stream.seek(position)
            return end
        except Exception:
            return 2**64 - 1
