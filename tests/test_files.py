"""Reading what nobody vouches for takes no more time or memory than it must; what doesn't fit on a disk is named."""

import os

import pytest

import levelhead as lh
from levelhead import files


@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "nothing"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, kind):
    path = tmp_path / "x.json"
    match kind:
        case "link":
            (tmp_path / "real").write_text("{}")
            path.symlink_to(tmp_path / "real")
        case "pipe":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
    with pytest.raises(OSError, match=r"symbolic link|not a regular file|No such file"):
        files.read_small(path)


def test_a_file_of_json_has_a_largest_size(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b" " * files.LIMIT)
    assert len(files.read_small(path)) == files.LIMIT
    os.truncate(path, 1 << 40)  # sparse: it takes no room, until someone reads it
    with pytest.raises(OSError, match="larger than 8,388,608 bytes"):
        files.read_small(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[]",
        "",
        "{",
        '{"a": 1e999}',
        '{"a": -1e999}',
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": ' + "9" * 101 + "}",
        '{"a": ' + "9" * 5_000_000 + "}",
        '{"a": "\xff"}',
    ],
    ids=lambda text: text[:20],
)
def test_json_that_is_deep_huge_or_no_object_is_refused(text):
    with pytest.raises(ValueError) as caught:
        files.parse(text.encode("latin-1"))
    assert len(str(caught.value)) < 200


def test_ordinary_json_is_read():
    assert files.parse(b'{"a": [1, -2.5, 1e300, null, "x"], "b": {"c": true}}') == {
        "a": [1, -2.5, 1e300, None, "x"],
        "b": {"c": True},
    }


def test_a_new_content_is_there_whole_or_the_old_one_is(tmp_path, no_room):
    path, elsewhere = tmp_path / "x", tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    (tmp_path / ".x.partial").symlink_to(elsewhere)
    files.replace(path, [b"one", b"two"])
    with no_room(1000), pytest.raises(lh.StorageError, match=r"/x cannot be written: File too large"):
        files.replace(path, [b"z" * 600] * 2)
    assert path.read_text() == "onetwo"
    assert elsewhere.read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {"x", "elsewhere"}


def test_of_a_piece_that_does_not_fit_nothing_stays(tmp_path, no_room):
    file = files.Appended(tmp_path / "x")
    file.write(b"a" * 600)
    with no_room(1000), pytest.raises(lh.StorageError, match=r"/x cannot be written: File too large"):
        file.write(b"b" * 600)
    file.write(b"c" * 600)
    file.close()
    assert (tmp_path / "x").read_bytes() == b"a" * 600 + b"c" * 600


def test_a_file_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(lh.StorageError, match=r"nowhere/x cannot be written: No such file or directory"):
        files.Appended(tmp_path / "nowhere" / "x")
