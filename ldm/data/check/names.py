"""The keys of many examples in one piece of memory."""

from __future__ import annotations

from array import array


class Names:
    """The part and the key of every example by its number, without an object for each."""

    def __init__(self) -> None:
        self._text, self._ends, self._parts = bytearray(), array("Q"), array("H")

    def add(self, part: int, key: str) -> None:
        """Note the next."""
        self._text += key.encode(errors="surrogatepass")
        self._ends.append(len(self._text))
        self._parts.append(part)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> tuple[int, str]:
        start = self._ends[number - 1] if number else 0
        return self._parts[number], self._text[start : self._ends[number]].decode(errors="surrogatepass")
