"""`bigft plan`: the page, the JSON of the contract, exit codes, and no torch."""

import json
import subprocess
import sys

import pytest

from bigft.cli import main

KEYS = {
    *("parameters", "fits", "device_bytes_per_rank", "host_bytes_per_host"),
    *("nvme_bytes_per_host", "checkpoint_bytes", "seconds_per_step", "advice"),
}
HARDWARE = ["--gpus", "1x24GB", "--host_memory", "64GB", "--nvme", "1TB@7/6"]


def plan(capsys, *words):
    main(["plan", *words])
    return capsys.readouterr().out


def test_json_has_the_keys_of_the_contract(capsys):
    found = json.loads(plan(capsys, "--config", "ds_configs/zero3.json", *HARDWARE, "--json"))
    assert found.keys() >= KEYS
    assert found["parameters"] == 6_883_968
    assert found["fits"] is True
    assert found["advice"] == []
    assert sum(found["seconds"].values()) >= found["seconds_per_step"] > 0
    assert found["largest_length"] > 1024


def test_the_page_shows_parts_time_and_verdict(capsys):
    page = plan(capsys, "--config", "ds_configs/zero3_nvme.json", *HARDWARE)
    for part in ("memory of the device", "NVMe, per rank", "moments", "seconds of a step"):
        assert part in page
    assert page.rstrip().endswith("it fits")


def test_what_does_not_fit_is_said_with_what_would(capsys, tmp_path):
    config = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008}
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["--model", str(tmp_path), "--config", "ds_configs/zero2.json", *HARDWARE]
    with pytest.raises(SystemExit) as caught:
        main(["plan", *words])
    assert caught.value.code == 4
    page = capsys.readouterr().out
    assert "DOES NOT FIT" in page
    assert "--config ds_configs/zero3_offload.json --optim adamw_8bit: " in page


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--gpus", "four"], "--gpus four"),
        (["--nvme", "2TB@x"], "--nvme 2TB@x"),
        (["--gpu", "4x24GB"], "did you mean --gpus"),
        (["--probe", "--gpus", "4x24GB"], "only this machine can be measured"),
        (["--lr", "1"], "--learning_rate"),
    ],
)
def test_wrong_words_are_answered(capsys, words, answer):
    with pytest.raises(SystemExit) as caught:
        main(["plan", *words])
    assert caught.value.code == 2
    assert answer in capsys.readouterr().err


def test_hosts_share_what_is_partitioned(capsys):
    words = ["--config", "ds_configs/zero3.json", *HARDWARE, "--json"]
    one = json.loads(plan(capsys, *words))
    four = json.loads(plan(capsys, *words, "--hosts", "4"))
    assert four["device_bytes_per_rank"] < one["device_bytes_per_rank"]
    assert four["sent_bytes_per_step"] > one["sent_bytes_per_step"] == 0


def test_no_torch_is_loaded():
    code = (
        "import sys; from bigft.cli import main; main(['plan', '--gpus', '1x24GB', '--json']);"
        " assert not {'torch', 'transformers', 'deepspeed', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_gets_the_same(capsys):
    words = ["--config", "ds_configs/zero3.json", *HARDWARE, "--json"]
    import bigft

    hardware = {"gpus": "1x24GB", "host_memory": "64GB", "nvme": "1TB@7/6"}
    found = bigft.plan("ds_configs/zero3.json", **hardware)
    assert json.loads(json.dumps(found)) == json.loads(plan(capsys, *words))
