"""The checksums of HDF5's newer layouts, made to fit after a change: without that, no change gets past them."""


def repaired(data: bytes, start: int) -> bytes:
    """The bytes of a file with the checksum of the object header at a place, or of the first block at 0, right again."""
    if start == 0 and data[8:9] in (b"\2", b"\3"):
        end = 44
    elif data[start : start + 4] == b"OHDR" and len(data) > start + 40:
        flags = data[start + 5]
        at = start + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        end = at + width + int.from_bytes(data[at : at + width], "little")
    else:
        return data
    if end - start > 4096 or end + 4 > len(data):
        return data
    return data[:end] + lookup3(data[start:end]).to_bytes(4, "little") + data[end + 4 :]


def lookup3(key: bytes) -> int:
    """Jenkins' hash "lookup3" (hashlittle), which HDF5 uses."""
    a = b = c = (0xDEADBEEF + len(key)) & _ALL
    while len(key) > 12:
        a, b, c = _add(a, b, c, key)
        for left, right, turn in ((0, 2, 4), (1, 0, 6), (2, 1, 8), (0, 2, 16), (1, 0, 19), (2, 1, 4)):
            words = [a, b, c]
            words[left] = (words[left] - words[right]) & _ALL ^ _turned(words[right], turn)
            other = 3 - left - right
            words[right] = (words[right] + words[other]) & _ALL
            a, b, c = words
        key = key[12:]
    if not key:
        return c
    words = list(_add(a, b, c, key.ljust(12, b"\0")))
    for left, right, turn in ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24)):
        words[left] = ((words[left] ^ words[right]) - _turned(words[right], turn)) & _ALL
    return words[2]


_ALL = 0xFFFFFFFF


def _turned(word: int, by: int) -> int:
    return (word << by | word >> 32 - by) & _ALL


def _add(a: int, b: int, c: int, key: bytes) -> tuple[int, int, int]:
    return tuple((word + int.from_bytes(key[at : at + 4], "little")) & _ALL for word, at in ((a, 0), (b, 4), (c, 8)))
