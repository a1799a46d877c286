"""What a shared page takes: its size, the time to its first result, and from a letter to the picture on the screen.

    python benchmarks/share.py PAGE.html [WORDS]

PAGE.html is of `clipcoco share`. A headless Chromium opens it with WORDS asked for, anew each time, then types them
letter by letter: each counts from its event until the browser has drawn a frame. Without a network.
"""

import json
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import browser

LETTERS, OPENED = 50, 5
WORDS = "a small red circle above a big blue square and a green star"
TYPED = """(async () => {
  const took = [], tower = [], query = byId("query"), encode = page.tower.encode.bind(page.tower);
  page.tower.encode = (tokens) => {
    const began = performance.now(), vector = encode(tokens);
    tower.push(performance.now() - began);
    return vector;
  };
  for (let end = 1; end <= LETTERS; end++) {
    const began = performance.now();
    query.value = WORDS.slice(0, end);
    query.dispatchEvent(new Event("input"));
    await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
    took.push(performance.now() - began);
    await new Promise((rest) => setTimeout(rest, 60)); // as one types
  }
  return [took, tower];
})()"""


def main() -> None:
    page, words = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else WORDS
    print(f"{page.name}: {page.stat().st_size / 1e6:.2f} MB")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, browser(Path(profile)) as tab:
        tab("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
        first = []
        for _ in range(OPENED):
            tab("Page.navigate", url="about:blank")
            tab.open(page, "#q=" + words.replace(" ", "+"))
            first.append(tab.run("performance.getEntriesByName('first result')[0].startTime"))
        print(f"opened to the first result: {first[0]:.0f} ms in a new browser, then median {median(first[1:]):.0f} ms")
        tab.run("page.search('')")
        script = TYPED.replace("LETTERS", str(LETTERS)).replace("WORDS", json.dumps(words))
        for label, took in zip(("letter to frame", "of which the text tower"), tab.run(script), strict=True):
            print(f"{label}: median {median(took):.1f} ms of {len(took)}, longest {max(took):.1f} ms")


if __name__ == "__main__":
    main()
