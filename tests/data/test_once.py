"""What is marked reads once for each of its arguments, inside a block and not beyond."""

from __future__ import annotations

import pytest

from balora.data.once import once, reading_once


def test_a_marked_function_is_called_once_for_each_of_its_arguments():
    calls = []

    @once
    def read(name, *, split="train"):
        """Read."""
        calls.append((name, split))
        if name == "bad":
            raise ValueError(name)
        return [name, split]

    assert read.__doc__ == "Read."
    read("a")
    read("a")
    assert len(calls) == 2
    with reading_once():
        first = read("a")
        assert read("a") is first
        assert read("a", split="test") == ["a", "test"]
        for _ in range(2):  # an error is no result
            with pytest.raises(ValueError, match="bad"):
                read("bad")
    assert calls[2:] == [("a", "train"), ("a", "test"), ("bad", "train"), ("bad", "train")]
    with reading_once():
        assert read("a") is not first
