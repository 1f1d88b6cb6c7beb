import pytest

from bertdyn.files import replacing


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failed_write_leaves_what_was_there(tmp_path, kind):
    def write(path, text):
        if kind == "folder":
            path.mkdir()
            path = path / "inside"
        path.write_text(text)

    target = tmp_path / "target"
    with replacing(target) as temporary:
        write(temporary, "old")
    with pytest.raises(OSError, match="disk full"), replacing(target) as temporary:
        write(temporary, "half")
        raise OSError("disk full")
    assert (target / "inside" if kind == "folder" else target).read_text() == "old"
    with replacing(target) as temporary:
        write(temporary, "new")
    assert (target / "inside" if kind == "folder" else target).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
