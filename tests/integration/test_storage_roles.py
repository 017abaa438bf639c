"""Two ranks with a folder each: saved apart, and gone on with on other disks and other ranks."""

import shutil

import pytest
from resume_runs import digest_state
from small_runs import ds_config, read_losses, small_settings

pytestmark = pytest.mark.distributed

ZERO3 = "zero3"


def settings_of(shared, **changes):
    return small_settings(shared, **{"optim.lr_scheduler_type": "constant", **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared_folder, two_ranks):
    """The same run on one disk."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    two_ranks.run("runs:train", settings_of(shared_folder), str(folder), ds_config(ZERO3))
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory, shared_folder, two_ranks):
    """Two of four steps on two disks."""
    folder = tmp_path_factory.mktemp("half")
    settings = settings_of(shared_folder, max_steps=2, save_steps=1)
    first, second = two_ranks.run(
        "storage_runs:train_apart", settings, str(folder), ds_config(ZERO3)
    )
    assert first["storages"] == second["storages"] == (0, 1)
    assert "keep their ranks' files" in first["said"]
    return folder


def copy(half, tmp_path):
    return shutil.copytree(half, tmp_path / "disks")


def model_of(folder):
    return (folder / "model/model.safetensors").read_bytes()


def left(folder):
    return [path.name for path in folder.rglob("*") if path.name.startswith((".tmp", ".storage"))]


def go_on(ranks, shared, folder, **options):
    return ranks.run(
        "storage_runs:train_apart", settings_of(shared), str(folder), ds_config(ZERO3), **options
    )


def test_same_disks_continue_bit_for_bit(half, whole, tmp_path, shared_folder, two_ranks):
    folder = copy(half, tmp_path)
    said = go_on(two_ranks, shared_folder, folder)[0]["said"]
    assert "resumed from step_00000002" in said
    assert read_losses(folder / "disk0/run") == read_losses(whole)
    assert model_of(folder / "disk0/run") == model_of(whole)
    assert left(folder) == []
    step = "checkpoints/step_00000004"
    states = [digest_state(folder / disk / "run" / step) for disk in ("disk0", "disk1")]
    assert states[0] | states[1] == digest_state(whole / step)


def test_ranks_that_moved_are_sent_their_files(half, whole, tmp_path, shared_folder, two_ranks):
    folder = copy(half, tmp_path)
    (folder / "disk0/run/metrics.jsonl").rename(folder / "disk1/run/metrics.jsonl")
    said = go_on(two_ranks, shared_folder, folder, disks=["disk1", "disk0"])[0]["said"]
    assert "resumed from step_00000002" in said
    assert read_losses(folder / "disk1/run") == read_losses(whole)
    assert model_of(folder / "disk1/run") == model_of(whole)
    assert left(folder) == []


def test_a_disk_that_is_new_is_sent_what_its_rank_needs(
    half, whole, tmp_path, shared_folder, two_ranks
):
    folder = copy(half, tmp_path)
    for path in (folder / "disk1/run/checkpoints/step_00000002/state").iterdir():
        path.rename(folder / "disk0/run/checkpoints/step_00000002/state" / path.name)
    said = go_on(two_ranks, shared_folder, folder, disks=["disk0", "disk2"])[0]["said"]
    assert "resumed from step_00000002" in said
    assert read_losses(folder / "disk0/run") == read_losses(whole)
    assert model_of(folder / "disk0/run") == model_of(whole)


def test_one_rank_goes_on_where_all_files_are_and_says_what_is_missing_where_not(
    half, tmp_path, shared_folder, one_rank
):
    folder = copy(half, tmp_path)
    result = go_on(one_rank, shared_folder, folder)[0]
    assert result["kind"] == "PartsElsewhereError"
    assert "1 of its" in result["error"]
    assert "state/rank_00001.safetensors" in result["error"]
    assert "rsync -a -- " in result["error"]
    assert "bigft consolidate" in result["error"]
    names = [path.name for path in (folder / "disk0/run/checkpoints").iterdir()]
    assert "step_00000002" in names  # Not damaged: nothing was put away.
    for path in (folder / "disk1/run/checkpoints/step_00000002/state").iterdir():
        shutil.copy(path, folder / "disk0/run/checkpoints/step_00000002/state")
    assert "resumed from step_00000002" in go_on(one_rank, shared_folder, folder)[0]["said"]


def test_damage_on_one_disk_takes_both_to_the_checkpoint_before(
    half, tmp_path, shared_folder, two_ranks
):
    folder = copy(half, tmp_path)
    path = folder / "disk1/run/checkpoints/step_00000002/state/rank_00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    said = go_on(two_ranks, shared_folder, folder)[0]["said"]
    assert "its content is not what was saved" in said
    assert "resumed from step_00000001" in said
    for disk in ("disk0", "disk1"):
        assert (folder / disk / "run/checkpoints/damaged-step_00000002").is_dir()
