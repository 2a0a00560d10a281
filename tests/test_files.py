"""Files: byte-order marks, `~`, patterns and names that look like patterns, whole writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError

MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_removed_once(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(MARK + "é\r\nx".encode())
    assert files.read_text(path) == "é\nx"
    path.write_bytes(MARK + b'{"a": 1}')
    assert files.read_json(path) == {"a": 1}
    path.write_bytes(MARK + b"a = 1\r\n")
    assert files.read_toml(path) == {"a": 1}
    path.write_bytes(MARK + MARK + b"x")
    assert files.read_text(path) == "\ufeffx"


@pytest.mark.parametrize(
    ("content", "read", "message"),
    [
        (b"ab\xff", files.read_text, "a.txt is not UTF-8 text: byte 2 is 0xff"),
        ("x".encode("utf-16"), files.read_text, "a.txt is UTF-16, not UTF-8"),
        (b"{", files.read_json, "a.txt is not valid JSON"),
        (b'{"a": 1, "b": [{"c": 1, "c": 1}]}', files.read_json, "a.txt has 'c' twice"),
        (b"[" * 100_000, files.read_json, "a.txt is not valid JSON"),
        (b'{"a": [NaN]}', files.read_json, "a.txt is not valid JSON: NaN is not a number"),
        (b"-Infinity", files.read_json, "a.txt is not valid JSON: -Infinity is not a number"),
        (b"a = " + b"1" * 5000, files.read_toml, "a.txt is not valid TOML"),
        (b"a =", files.read_toml, "a.txt is not valid TOML"),
    ],
)
def test_unreadable_content_names_the_file(content, read, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.txt")


def test_an_absent_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read .*none: No such file"):
        files.read_text(tmp_path / "none")
    with pytest.raises(UserError, match="Is a directory"):
        files.read_text(tmp_path)


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.user_path("~") == tmp_path
    assert files.user_path("~/a b") == tmp_path / "a b"
    assert files.user_path("a/~/b") == Path("a/~/b")
    monkeypatch.chdir(tmp_path)
    for refuses in (files.user_path, files.resolved, files.output_folder):
        with pytest.raises(UserError, match="there is no user nobody-here, and nothing here"):
            refuses("~nobody-here/x")
    (tmp_path / "~nobody-here").mkdir()
    assert files.user_path("~nobody-here/x") == Path("~nobody-here/x")
    with pytest.raises(UserError, match="NUL"):
        files.user_path("a\0b")
    with pytest.raises(UserError, match="A path is empty"):  # not the current folder
        files.user_path("")


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder: Path, pattern: str) -> list[str]:
    return [str(path.relative_to(folder)) for path in files.find(folder, pattern)]


def test_patterns_find_files_that_are_not_hidden(tmp_path: Path) -> None:
    names = ("b.jsonl", "a.jsonl", "x/c.jsonl", "x/y/d.jsonl", "x/e.txt")
    hidden = ("._a.jsonl", ".hidden/f.jsonl", "x/._c.jsonl", "x/.git/g.jsonl")
    make(tmp_path, *names, *hidden)
    assert found(tmp_path, "*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert found(tmp_path, "?.jsonl") == ["a.jsonl", "b.jsonl"]
    assert found(tmp_path, "[!b].jsonl") == ["a.jsonl"]
    everywhere = ["a.jsonl", "b.jsonl", "x/c.jsonl", "x/y/d.jsonl"]
    assert found(tmp_path, "**/*.jsonl") == everywhere
    assert found(tmp_path, "**") == sorted(names)
    assert found(tmp_path, "x/../*.jsonl") == ["x/../a.jsonl", "x/../b.jsonl"]
    assert [str(path.relative_to(tmp_path)) for path in files.walk(tmp_path)] == sorted(names)
    assert found(tmp_path, ".hidden/*.jsonl") == [".hidden/f.jsonl"]
    assert found(tmp_path, "x") == found(tmp_path, "no/*") == found(tmp_path, "a.jsonl/*") == []
    assert list(files.visible(tmp_path.glob("?_a*"))) == []


@pytest.mark.parametrize("name", ["proj [v2]", "a::b", "what?", "st*r", "[", "**.d", "~odd"])
def test_what_exists_as_written_is_no_pattern(name: str, tmp_path: Path) -> None:
    make(tmp_path, f"{name}/{name}.jsonl", f"{name}/other.jsonl", "v/v.jsonl")
    assert found(tmp_path, f"{name}/{name}.jsonl") == [f"{name}/{name}.jsonl"]
    assert found(tmp_path, f"{name}/o*.jsonl") == [f"{name}/other.jsonl"]
    assert files.find(tmp_path / name, "o*.jsonl") == [tmp_path / name / "other.jsonl"]
    absolute = f"{tmp_path / name}/*er.jsonl"
    assert files.find(Path("/nowhere"), absolute) == [tmp_path / name / "other.jsonl"]


def test_patterns_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home [me]"
    make(home, "a.jsonl")
    monkeypatch.setenv("HOME", str(home))
    assert files.find(Path("/nowhere"), "~/*.jsonl") == [home / "a.jsonl"]


def test_links_to_a_folder_above_end(tmp_path: Path) -> None:
    make(tmp_path, "x/a.jsonl", "y/b.jsonl")
    for at, to in (("x/up", tmp_path), ("y/up", tmp_path), ("y/self", tmp_path / "y/self")):
        os.symlink(to, tmp_path / at)
    assert found(tmp_path, "**/*.jsonl") == ["x/a.jsonl", "y/b.jsonl"]


def test_json_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"b": [1, "é"]})
    assert files.read_json(path) == {"b": [1, "é"]}
    assert path.read_bytes().endswith(b"}\n")
    with pytest.raises(TypeError):
        files.write_json(path, {"b": object()})
    assert files.read_json(path) == {"b": [1, "é"]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_links_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to("there/a.json")
    for content in (1, 2):  # at first it leads nowhere
        files.write_json(link, content)
        assert link.is_symlink() and files.read_json(tmp_path / "there" / "a.json") == content
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write(pipe, b"abc")
    assert os.read(end, 9) == b"abc" and pipe.is_fifo()
    os.close(end)


def test_errors_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        files.write(tmp_path / "a", b"abc")
    assert error.value.filename == str(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    for folder in (tmp_path, Path("/"), Path(".")):
        with pytest.raises(IsADirectoryError):
            files.write(folder, b"abc")


def test_sha256_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(tmp_path / "a") == digest


def test_folders_above_go_again_where_nothing_came_of_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for kept in (False, True):
        target = tmp_path / "a" / "b" / "c" / "target"
        with pytest.raises(ValueError, match="stop"), files.made_parents(target):
            assert target.parent.is_dir()
            if kept:
                (tmp_path / "a" / "b" / "mine").touch()
            raise ValueError("stop")
        assert (tmp_path / "a").is_dir() and (tmp_path / "a" / "b").is_dir() == kept
        assert not target.parent.exists()
    with files.made_parents(target):
        pass
    assert target.parent.is_dir() and not target.exists()
