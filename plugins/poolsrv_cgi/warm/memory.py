"""How the fork server's memory lies, so that a fork costs less.

A part of the fork server (`helper`), which runs this file in a module of its own. Like `helper` it needs the standard
library alone, of any Python from 3.9 on.

A child maps the interpreter's code again as it comes to run it, with a page fault for every 64 KiB, and all that is
taken down at its end. Two huge pages in place of a thousand small ones come with the fork itself.
"""

import _ctypes
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Mapping = tuple[int, int, str, int, list[str]]  # start, end, mode, offset in its file, the file if there is one

HUGE_PAGE = 1 << 21  # bytes, x86-64
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4  # asm-generic/mman-common.h
MAP_PRIVATE, MAP_ANONYMOUS = 0x02, 0x20
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
HUGE_PAGES_SETTING = "/sys/kernel/mm/transparent_hugepage/enabled"


def put_code_into_huge_pages() -> bool:
    """Replace the interpreter's code and constants, as far as they fill huge pages, by a copy in huge pages at the same
    place. False where that can't be done; then nothing has changed.

    It takes Linux 6.1 (MADV_COLLAPSE, madvise(2)), and huge pages that the system does not refuse to programs that ask
    for them. Constants get executable with the code, as in the days when linkers put both into one segment.
    """
    if os.uname().machine != "x86_64" or sys.maxsize < 1 << 32:
        return False
    try:
        with open(HUGE_PAGES_SETTING, "rb") as file:
            if b"[never]" in file.read():
                return False
        library = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
        start, end = _code_around(_ctypes.dlsym(library, "Py_BytesMain"))
    except (OSError, ValueError):
        return False
    return start < end and _copy_to_huge_pages(library, start, end - start)


def _code_around(address: int) -> "tuple[int, int]":
    """The huge pages that are filled by what is mapped of the file with this address, can't be written to, and lies in
    one piece there and here."""
    mappings = _mappings()
    first = last = next(number for number, mapping in enumerate(mappings) if mapping[0] <= address < mapping[1])
    if not mappings[first][4]:
        return 0, 0
    while first > 0 and _continues(mappings[first - 1], mappings[first]):
        first -= 1
    while last + 1 < len(mappings) and _continues(mappings[last], mappings[last + 1]):
        last += 1
    return -(-mappings[first][0] // HUGE_PAGE) * HUGE_PAGE, mappings[last][1] // HUGE_PAGE * HUGE_PAGE


def _continues(one: "Mapping", other: "Mapping") -> bool:
    start, end, mode, offset, file = one
    return (other[0], other[3], other[4]) == (end, offset + end - start, file) and "w" not in mode + other[2]


def _mappings() -> "list[Mapping]":
    """What this process has mapped, proc_pid_maps(5)."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(None, 5)
            start, _, end = fields[0].partition("-")
            found.append((int(start, 16), int(end, 16), fields[1], int(fields[2], 16), fields[5:]))
    return found


def _copy_to_huge_pages(library: int, start: int, size: int) -> bool:
    """Replace what is mapped from `start` on by a copy in huge pages that can be read and executed."""
    base: Any = _ctypes
    Pointer: Any = type("Pointer", (base._SimpleCData,), {"_type_": "P"})
    Size: Any = type("Size", (base._SimpleCData,), {"_type_": "L"})
    attributes = {"_flags_": base.FUNCFLAG_CDECL, "_restype_": Pointer}
    Function: Any = type("Function", (base.CFuncPtr,), attributes)

    def function(name: str) -> "Any":
        return Function(base.dlsym(library, name))

    try:
        madvise, memcpy, mmap = function("madvise"), function("memcpy"), function("mmap")
        mprotect, mremap, munmap = function("mprotect"), function("mremap"), function("munmap")
    except OSError:
        return False
    private = MAP_PRIVATE | MAP_ANONYMOUS
    room = mmap(Pointer(0), Size(size + HUGE_PAGE), PROT_READ | PROT_WRITE, private, -1, Size(0))
    if not room or room % 4096:  # MAP_FAILED
        return False
    copy = -(-room // HUGE_PAGE) * HUGE_PAGE
    moved = (
        not madvise(Pointer(copy), Size(size), MADV_HUGEPAGE)
        and bool(memcpy(Pointer(copy), Pointer(start), Size(size)))
        and not madvise(Pointer(copy), Size(size), MADV_COLLAPSE)
        and not mprotect(Pointer(copy), Size(size), PROT_READ | PROT_EXEC)
        and mremap(Pointer(copy), Size(size), Size(size), MREMAP_MAYMOVE | MREMAP_FIXED, Pointer(start)) == start
    )
    if not moved:
        munmap(Pointer(room), Size(size + HUGE_PAGE))
        return False
    munmap(Pointer(room), Size(copy - room))
    munmap(Pointer(copy + size), Size(room + HUGE_PAGE - copy))
    return True
