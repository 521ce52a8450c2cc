"""Draw the picture of the page: let the demo run for some minutes and take a screenshot of its figures.

python scripts/page_picture.py docs/images/page.png
"""

import argparse
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

WIDTH, HEIGHT, MINUTES = 1100, 640, 4.0


def main() -> None:
    """Start the demo, wait, take the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--url", help="address of a demo that runs already")
    options = parser.parse_args()
    if options.url:
        picture(options.url, options.out)
        return
    command = [sys.executable, "-m", "testtime", "serve", "--demo", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        try:
            found = next(filter(None, (re.search(r"http://\S+[0-9]", line) for line in demo.stdout)))
            picture(found[0], options.out, options.minutes)
        finally:
            demo.send_signal(signal.SIGINT)


def picture(url: str, out: Path, minutes: float = 0.0) -> None:
    """Take a screenshot of the page after some minutes."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.set_default_timeout(120_000)
        page.goto(url)
        page.wait_for_selector("#charts svg")
        page.wait_for_timeout(60_000 * minutes)
        page.screenshot(path=out)
        browser.close()
    Image.open(out).convert("RGB").quantize(64).save(out, optimize=True)
    print(out, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
