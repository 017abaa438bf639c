"""Ranks find out which of them share a folder, and leave nothing there."""

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("disks", "numbers", "said"),
    [
        (["a", "a"], (0, 0), None),
        (["a", "b"], (0, 1), "2 storages keep their ranks' files in"),
    ],
)
def test_ranks_share_what_they_see(tmp_path, two_ranks, disks, numbers, said):
    (tmp_path / disks[1]).mkdir()
    (tmp_path / disks[1] / ".storage-dead.1").touch()
    found = two_ranks.run("storage_runs:find", str(tmp_path), disks)
    assert [one["numbers"] for one in found] == [numbers, numbers]
    assert said is None or said in found[0]["said"]
    assert [path.name for path in tmp_path.rglob(".storage-*")] == []
