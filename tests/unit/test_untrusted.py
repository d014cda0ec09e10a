"""Readers of files that anybody may have written: whatever is in them, one kind of error with one line comes out."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evalkit.storage import seal, untrusted
from evalkit.storage.untrusted import UnreadableError

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"[" * 100_000, "brackets nested too deep"),
        (b"[" * 200 + b"]" * 200, "more than 100 lists and mappings in each other"),
        (b"\xff", "can't decode byte 0xff"),
        (b"NaN", "got NaN, wanted a finite number"),
        (b"1e999", "got inf, wanted a finite number"),
        (b"1" * 5000, "Exceeds the limit"),
        (b"1" + b"0" * 400, "got a whole number of 1329 bits, wanted 64 at most"),
        (b'"\\ud800"', "got half a surrogate pair"),
        (b'{"\\ud800": 1}', "got half a surrogate pair"),
    ],
)
def test_json_that_cannot_be_used_is_one_reason(data, reason):
    with pytest.raises(UnreadableError) as caught:
        untrusted.json_value(data)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a: [", "while parsing"),
        (b"[" * 100_000, "brackets nested too deep"),
        (b"\xff", "can't decode byte 0xff"),
        (b"a: !!int x", "invalid literal for int"),
        (b"a: !!int", "string index out of range"),
        (b"a: !!float x", "could not convert"),
        (b"a: !!timestamp x", "'NoneType' object has no attribute"),
        (b"a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (b"a: &x [1]\nb: *x", "got an alias (*name), wanted the value itself"),
        (b"a: .nan", "got nan, wanted a finite number"),
        (b"? [1, 2]\n: 3", "unhashable key"),
        (b"a: \x00", " characters are not allowed"),
    ],
)
def test_yaml_that_cannot_be_used_is_one_reason(data, reason):
    with pytest.raises(UnreadableError) as caught:
        untrusted.yaml_value(data)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_a_reason_too(tmp_path):
    with pytest.raises(UnreadableError, match=r"^No such file or directory$"):
        untrusted.read_json_object(tmp_path / "missing")
    with pytest.raises(UnreadableError, match=r"^Is a directory$"):
        untrusted.read_yaml(tmp_path)
    with pytest.raises(UnreadableError, match=r"^got a list, wanted a JSON object$"):
        untrusted.json_object("[]")


@given(values)
def test_what_was_written_is_read_as_it_was(value):
    assert untrusted.json_value(json.dumps(value).encode()) == value
    assert untrusted.yaml_value(json.dumps({"a": 1})) == {"a": 1}


def reason(read, data):
    try:
        read(data)
    except ValueError as error:
        return str(error)
    return ""


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data):
    for read in (untrusted.json_value, untrusted.yaml_value, seal.read):
        assert "\n" not in reason(read, data)


@given(values, st.integers(0, 10_000), st.integers(0, 255))
def test_no_changed_byte_raises_anything_else(value, place, byte):
    for text in (json.dumps({"a": value}), yaml.safe_dump({"a": value})):
        data = bytearray(text.encode())
        data[place % len(data)] = byte
        for read in (untrusted.json_value, untrusted.yaml_value):
            assert "\n" not in reason(read, bytes(data))
