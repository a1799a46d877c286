"""Folders that systems and programs keep among a person's pictures: thumbnails, previews, what was deleted."""

import re

_HELPER = re.compile(
    r"""/(
      @eadir | @tmp | @sharebin | @recycle | @recently-snapshot | \#recycle | \#snapshot          # disks on the network
    | \$recycle\.bin | recycler | recycled | system[ ]volume[ ]information | found\.\d{3}         # Windows
    | __macosx | [^/]*\.photoslibrary/(?!originals/|masters/)[^/]+                               # macOS
    | [^/]*\.(photolibrary|migratedphotolibrary|aplibrary)/(thumbnails|previews)
    | lost\+found | lost\.dir                                                                    # Linux, Android
    | [^/]*\.lrdata | captureone/cache | appdata_[^/]*/preview                    # Lightroom, Capture One, Nextcloud
    )/""",
    re.VERBOSE,
)


def is_helper(folder: str) -> bool:
    """Of a path with slashes, relative to where pictures are looked for: whether it is such a folder, or in one."""
    return _HELPER.search(f"/{folder.lower()}/") is not None
