"""Where the checkout, its README and its sample images lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
INBOX = ROOT / "sample_images" / "inbox"
LABELLED = ROOT / "sample_images" / "labelled"
