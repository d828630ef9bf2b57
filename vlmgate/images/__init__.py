"""Find image files; open each as upright 8-bit RGB, or say why not.

Two promises: whatever might be an image is in the result, as a `Source` or as an `Unreadable`; and whatever is wrong
with one file is a value about that file, never an exception and never a Python warning. Knows nothing of models.

    walk ──► ahead ──► opening ──► containers ──► decoding ──► depth
    folder   threads   pages       one file       one page     10 bits and more
                     └─ quality       └─ damage, jpeg: is all of it there?
"""

from vlmgate.images.ahead import Opened, read_ahead
from vlmgate.images.opening import open_pages
from vlmgate.images.quality import STANDARD
from vlmgate.images.walk import Walk, find_images

__all__ = ["STANDARD", "Opened", "Walk", "find_images", "open_pages", "read_ahead"]
