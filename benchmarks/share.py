"""What a shared page takes: its size, the time to its first result, and from a letter to the picture on the screen.

    python benchmarks/share.py PAGE.html ... [--words WORDS] [--rounds 5]

Each PAGE.html is of `clipcoco share`. A new headless Chromium opens it with WORDS asked for, and then anew, each time
counted from the start of the navigation: until the list is ranked, and until the browser has drawn it, with the
pictures in its window. Two more pages say what of it no page can avoid: a blank one, and one of as many bytes that does
nothing with them. In the last round WORDS are typed, letter by letter, each from its event to its frame. The pages take
turns in each round. Without a network.
"""

import argparse
import json
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import Tab, browser

LETTERS, AGAIN = 50, 4
WORDS = "a small red circle above a big blue square and a green star"
IDLE = "<script>performance.mark('first result')</script>"
# Before all that a page does.
WATCH = """
const mark = performance.mark.bind(performance);
const frame = () => new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
performance.mark = async (name) => {
  mark(name);
  await frame();
  const seen = Array.from(document.images).filter((image) => image.getBoundingClientRect().top < innerHeight);
  await Promise.all(seen.map((image) => image.decode().catch(() => {})));
  await frame();
  mark("drawn");
};
"""
OPENED = """new Promise((ready) => {
  const times = () => ["first result", "drawn"].map((name) => performance.getEntriesByName(name)[0]?.startTime);
  const wait = () => times().every(Boolean) ? ready(times()) : setTimeout(wait, 20);
  wait();
})"""
TYPED = """(async () => {
  const took = [], tower = [], query = byId("query"), encode = page.tower.encode.bind(page.tower);
  page.search("");
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


def opened(tab: Tab, page: Path, words: str) -> list[float]:
    """Milliseconds to the ranked list, and to its picture on the screen."""
    tab("Page.navigate", url="about:blank")
    tab("Page.navigate", url=page.absolute().as_uri() + "#q=" + words.replace(" ", "+"))
    times: list[float] = tab.run(OPENED)
    return times


def idle(page: Path, folder: Path) -> Path:
    """A page of as many bytes, without its program."""
    path = folder / f"idle {len(list(folder.iterdir()))}.html"
    without = re.sub("<meta http-equiv=.*?>", "", page.read_text("utf-8"))
    path.write_text(re.sub("<script>.*?</script>", lambda _: IDLE, without, flags=re.DOTALL), "utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--words", default=WORDS)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    first, again, typed = defaultdict(list), defaultdict(list), {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as given:
        folder = Path(given)
        blank = folder / "blank.html"
        blank.write_text(f"<!doctype html><title>blank</title>{IDLE}")
        pages = {"blank": blank}
        for page in asked.pages:
            pages |= {str(page): page, f"idle {page}": idle(page, folder)}
        sizes = {name: page.stat().st_size / 1e6 for name, page in pages.items()}
        for turn in range(asked.rounds):
            for name, page in pages.items():
                with browser(folder / f"profile {turn} {list(pages).index(name)}") as tab:
                    tab("Network.disable")  # it would keep the page once more
                    tab("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
                    tab("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
                    first[name].append(opened(tab, page, asked.words))
                    again[name] += [opened(tab, page, asked.words) for _ in range(AGAIN)]
                    if turn == asked.rounds - 1 and page in asked.pages:
                        script = TYPED.replace("LETTERS", str(LETTERS)).replace("WORDS", json.dumps(asked.words))
                        typed[name] = tab.run(script)
    print("milliseconds, medians: to the ranked list / drawn, in a new browser; the same, opened again")
    for name, size in sizes.items():
        new, then = ([median(column) for column in zip(*times[name], strict=True)] for times in (first, again))
        print(f"{name}, {size:.2f} MB: {new[0]:.0f} / {new[1]:.0f}; {then[0]:.0f} / {then[1]:.0f}")
        for label, took in zip(("a letter to its frame", "the text tower of it"), typed.get(name, ()), strict=False):
            print(f"  {label}: median {median(took):.1f} of {len(took)}, longest {max(took):.1f}")


if __name__ == "__main__":
    main()
