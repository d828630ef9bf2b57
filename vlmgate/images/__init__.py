"""Find image files; open each as upright 8-bit RGB, or say why not.

    find_images (a folder), find_listed (a list)     find; names that read alike: names
      → read_ahead: in threads, in order             ahead
        → open_pages: the pages of one file          pages
          → one file, of whatever kind               container; more (kinds that take a package of their own)
          → what kind of file is it?                 formats; why one cannot be read, too
          → is all of it there?                      damage, jpeg, tiff (with libtiff)
          → pixels: modes, orientation               decode; stripes (line scans)
          → what is black, what is white?            depth; beside (pictures of the same camera)
          → how well was it taken?                   quality

Two promises: whatever might be an image is in the result, as a `Source` or as an `Unreadable`; and whatever is wrong
with one file is a value about that file, never an exception and never a Python warning.
"""

from vlmgate.images.ahead import Opened, read_ahead
from vlmgate.images.container import NO_END
from vlmgate.images.find import (
    Walk,
    chosen,
    find_again,
    find_images,
    find_listed,
    folders_of,
    read_list,
    sources_of,
    turned_of,
)
from vlmgate.images.formats import is_of_the_disk, sort_of
from vlmgate.images.names import composed, is_of_a_system, own_patterns, patterns_of, spelt_as
from vlmgate.images.pages import open_pages
from vlmgate.images.quality import STANDARD

__all__ = [
    "NO_END",
    "STANDARD",
    "Opened",
    "Walk",
    "chosen",
    "composed",
    "find_again",
    "find_images",
    "find_listed",
    "folders_of",
    "is_of_a_system",
    "is_of_the_disk",
    "open_pages",
    "own_patterns",
    "patterns_of",
    "read_ahead",
    "read_list",
    "sort_of",
    "sources_of",
    "spelt_as",
    "turned_of",
]
