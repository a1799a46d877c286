"""Tables of captions -> rows. What a spreadsheet shows in a cell is what counts.

- A table with a header line, separated by commas, semicolons, tabs or bars (Flickr8k and Flickr30k on Kaggle,
  the Flickr30k table on Hugging Face).
- Flickr's token form without a header: "NAME.jpg#0", a tab, the caption; a cell more is a caption more.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from clipcoco.errors import DataError
from clipcoco.prepare.own_rows import ACCEPTED, SUFFIXES, Row, column, describes, holds_captions, row, tell

_SEPARATORS = ",;\t|"
_QUOTING = ",;"  # with these a spreadsheet reads a quotation mark that opens a cell in any case
_TOKEN = re.compile(r'"?([^\t]+?)(?:#\d+)?"?\t.*')
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_HEADER_WITHIN = 20  # lines
_PICTURE = r"\.(?:jpe?g|png)"


def table_rows(text: str, path: Path, notes: list[str], chosen: Mapping[str, str]) -> list[Row]:
    """All kinds of line ends are "\\n" in `text`; `chosen` as `chosen_columns` has it.

    Raises DataError when it is in none of the forms above.
    """
    separator = first = ""
    for number, found in enumerate(islice(re.finditer(r"(.*)\n?", text), _HEADER_WITHIN), start=1):
        line = found[1]
        if given := _SEPARATOR_LINE.fullmatch(line):
            separator = given[1]
            continue
        for delimiter in separator or _SEPARATORS:
            header = [chosen.get(name, name) for name in _header(line, delimiter)]
            if describes(header) and not set(chosen.values()).difference(header):
                if first:
                    notes.append(f"the text above the header in line {number} is not read, first {first!r:.60}")
                return _table_rows(text, found.end(), number + 1, delimiter, header, notes)
        bare = line.strip()
        if not (first or chosen) and (token := _TOKEN.fullmatch(line)) and token[1].lower().endswith(SUFFIXES):
            return _token_rows(text, notes)
        first = first or ("" if bare.startswith("#") else bare)
    columns = max((first.split(delimiter) for delimiter in separator or _SEPARATORS), key=len)
    names = ", ".join(name.strip() for name in columns)[:100]
    wanted = f"called {' and '.join(map(repr, chosen)):.100}" if chosen else "of images and captions"
    raise DataError(f"no columns {wanted}, but {names!r} ({path}). {ACCEPTED}")


def _header(line: str, delimiter: str) -> list[str]:
    _, cells = next(_records(line, 0, 1, delimiter), (1, []))
    if cells and cells[0].startswith("#"):
        cells[0] = cells[0][1:]
    return [column(cell) for cell in cells]


def _table_rows(text: str, start: int, line: int, delimiter: str, header: list[str], notes: list[str]) -> list[Row]:
    captions = [position for position, name in enumerate(header) if holds_captions(name)]
    tell(header, notes)
    rows, continued = [], []
    for number, cells in _records(text, start, line, delimiter):
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if not any(cells):
            continue
        if more := max(0, len(cells) - len(header)):
            if len(captions) > 1:  # which cell belongs where can't be told
                rows.append(Row(f"line {number:,}"))
                continue
            continued.append(f"line {number:,}")  # the caption holds separators and is not quoted
            at = slice(captions[0], captions[0] + more + 1)
            cells[at] = [delimiter.join(cells[at])]
        rows.append(row(f"line {number:,}", zip(header, cells, strict=False)))
    if continued:
        many = f"{len(continued):,} of {len(rows):,} rows have more cells than the header, first {continued[0]}"
        notes.append(f"{many}: what is too many continues their caption")
    return rows


def _records(text: str, at: int, line: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells from position `at` on, which is in `line`.

    A cell in quotation marks may hold separators, line ends and, doubled, quotation marks. One that is opened and
    never closed is a character of its cell: else it would swallow the rows up to the next.
    """
    sign = re.escape(delimiter)
    quoted = re.compile(rf' *"((?:[^"]|"")*+)" *(?=[{sign}\n]|\Z)')
    begun = re.compile(rf'"((?:[^"\n]|"")*+)"([^{sign}\n]*+)')
    plain = re.compile(rf"[^{sign}\n]*+")
    rows = re.compile(rf'{_PICTURE}(?:#\d+)?"?{sign}|{sign}[^{sign}\n]*{_PICTURE}"?\n', re.IGNORECASE)  # swallowed
    while at < len(text):
        start, cells = at, []
        while True:
            if (cell := quoted.match(text, at)) and not ("\n" in cell[1] and rows.search(cell[1])):
                cells.append(cell[1].replace('""', '"'))
            elif delimiter in _QUOTING and (cell := begun.match(text, at)):
                cells.append(cell[1].replace('""', '"') + cell[2])
            else:
                cell = plain.match(text, at)
                assert cell is not None, "it matches nothing, too"
                cells.append(cell[0])
            at = cell.end() + 1
            if text[at - 1 : at] != delimiter:
                break
        yield line, cells
        line += text.count("\n", start, at)


def _token_rows(text: str, notes: list[str]) -> list[Row]:
    records = [(number, cells) for number, cells in _records(text, 0, 1, "\t") if any(map(str.strip, cells))]
    for _, cells in records:
        while not cells[-1].strip():
            cells.pop()
    more = [(number, cells) for number, cells in records if len(cells) > 2]
    numbers = bool(more) and all(cells[1].strip().isdecimal() for _, cells in more)
    if numbers:
        notes.append(f"{len(more):,} rows have a number in the second cell, first line {more[0][0]:,}: not read")
        for _, cells in records:
            if len(cells) > 1 and cells[1].strip().isdecimal():  # one without a caption, too
                del cells[1]
        more = [(number, cells) for number, cells in more if len(cells) > 2]
    if more:
        notes.append(f"{len(more):,} rows have several captions, a cell each, first line {more[0][0]:,}")
    return [
        row(f"line {number:,}", [("image", re.sub(r"#\d+$", "", name)), *(("caption", cell) for cell in cells)])
        for number, (name, *cells) in records
    ]
