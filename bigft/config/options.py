"""The commands, and the options of those that are not a training run.

One table drives parsing, checking and help. `train` and `explain` take the settings of a run,
which live in the sections, `sweep` takes them beside options of its own, and `data` those of them
that concern data; the other commands take the few options declared here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeVar, get_origin

from pydantic import Field
from pydantic.fields import FieldInfo

from bigft.config.flags import FLAGS
from bigft.config.hints import find_nearest, suggest
from bigft.config.request import Request
from bigft.config.section import Section
from bigft.config.typed import Typed, build_section, fields_of
from bigft.errors import ConfigError, raise_together

OptionsT = TypeVar("OptionsT", bound=Section)


class ConsolidateOptions(Section):
    """Turn a checkpoint, of bigft or of stock DeepSpeed, into one Hugging Face folder."""

    source: Annotated[str | None, Field(alias="from")] = None
    """Folder of a checkpoint that DeepSpeed wrote without bigft; instead of RUN_OR_CHECKPOINT."""

    output_dir: str | None = None
    """Folder for the model; absent: `model/` of the run folder."""

    hostfile: str | None = None
    """Hosts (lines `NAME slots=N`) that keep files of the checkpoint under the same path on disks
    of their own; the files are gathered over ssh, and removed again afterwards."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the weights; `auto` takes the one the model was trained in."""

    max_shard_size: str = "5GB"
    """Largest safetensors file."""

    model: str | None = None
    """Hub id, folder or config.json that config and tokenizer are copied from; absent: the
    checkpoint's own. What DeepSpeed wrote has none."""

    verify: bool = False
    """Read the finished files again, from the disk, and compare digests of every block."""

    as_json: Annotated[bool, Field(alias="json")] = False
    """Print one JSON object."""


class GenerationOptions(Section):
    """Answers that are written to be compared with the right ones."""

    max_examples: Annotated[int, Field(gt=0)] | None = None
    """Examples to answer, chosen by what they say and so the same ones for every model; absent:
    all."""

    max_new_tokens: Annotated[int, Field(gt=0)] = 256
    """Tokens of an answer at most."""

    num_beams: Annotated[int, Field(gt=0)] = 1
    """Answers that are followed at once to find the likeliest one; 1 takes the likeliest token each
    time."""

    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """Begin no further batch of answers after so long, and score what is written; absent: write
    all."""


class HarnessOptions(Section):
    """Tasks of lm-eval, instead of data."""

    harness: list[str] = []
    """Tasks of lm-eval (`hellaswag,arc_easy`, `mmlu_*`) to run instead of scoring `--data`. Needs
    `pip install "bigft[harness]"`, and their data: lm-eval downloads them."""

    harness_folder: str | None = None
    """Folder of tasks of your own, in lm-eval's YAML."""

    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Solved examples before each question; absent: as each task has it."""

    limit: Annotated[int, Field(gt=0)] | None = None
    """The first so many examples of each task, for a look; absent: all."""


class EvaluateOptions(Section):
    """Score a model folder on a data set: loss and the metrics of its task."""

    data: str | None = None
    """File, folder, glob or hub id; several separated by commas. Absent: the built-in data of the
    task. How rows are read is said as in training: `--data.columns.text review`, `--data.format`,
    `--data.train_on`, `--data.overlong`, `--data.on_bad_row`."""

    task: Literal["auto", "causal_lm", "classification", "regression", "seq2seq", "masked_lm"] = (
        "auto"
    )
    """What the model does; `auto` reads it in its config."""

    prefix: str = ""
    """Text before every source, of a model that writes targets."""

    max_length: Annotated[int, Field(gt=1)] = 1024
    """Tokens per sequence."""

    batch_size: Annotated[int, Field(gt=0)] = 1
    """Sequences in one forward pass."""

    packing: Literal["auto", "none", "best_fit"] = "auto"
    """`best_fit` puts several examples into one sequence; they do not see each other. `auto`:
    where the task is to predict the next token."""

    device: str = "auto"
    """torch device; `auto` takes the accelerator when there is one."""

    metrics: list[Literal["bleu", "chrf", "rouge", "exact_match", "f1"]] = []
    """Let the model answer each prompt, and compare: BLEU, chrF, ROUGE, or SQuAD's exact match and
    F1. Needs `pip install "bigft[eval]"`."""

    compare: str | None = None
    """Another model: `--compare A B` shows both, and the differences B - A with 95% intervals."""

    generation: GenerationOptions = GenerationOptions()
    """How answers are written."""

    tasks: HarnessOptions = HarnessOptions()
    """Tasks of lm-eval."""

    as_json: Annotated[bool, Field(alias="json")] = False
    """Print one JSON object."""


class GenerateOptions(Section):
    """Continue a prompt with a model folder, or chat on a terminal."""

    prompt: str | None = None
    """Text to continue; absent: a chat on the terminal."""

    max_new_tokens: Annotated[int, Field(gt=0)] = 256
    """Tokens to generate at most."""

    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Randomness of the choice; 0 always takes the likeliest token."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Only the likeliest tokens that together reach this probability are considered."""

    seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of the choice; absent: another text each time."""

    device: str = "auto"
    """torch device; `auto` takes the accelerator when there is one."""

    as_json: Annotated[bool, Field(alias="json")] = False
    """Print one JSON object."""


class CalibrationOptions(Section):
    """Text that shows which weights or layers matter: of `wanda` and `--drop_layers`."""

    calibration_data: str | None = None
    """File, folder, glob or hub id; several separated by commas. Absent: that of --data."""

    calibration_sequences: Annotated[int, Field(gt=0)] = 32
    """Sequences of --max_length tokens; `wanda` has them all in memory at once."""


class CompressOptions(Section):
    """Make a finished model smaller, and score it before and after."""

    prune: str | None = None
    """Set weights of linear layers to zero: `magnitude:0.5`, the half of each row that is smallest;
    `wanda:0.5`, by weight times input; `2:4` instead of a share leaves two of every four."""

    quantize: Literal["int8", "int4", "fp8"] | None = None
    """Store weights of linear layers in fewer bits. Needs `pip install "bigft[compress]"`."""

    drop_layers: Annotated[int, Field(gt=0)] | None = None
    """Leave out so many neighbouring layers, those that change their input least."""

    gguf: Literal["f32", "f16", "bf16", "q8_0"] | None = None
    """Write one GGUF file of this number format with llama.cpp's converter, which lies in the
    folder that BIGFT_LLAMA_CPP names."""

    output_dir: str | None = None
    """Folder for the result; it must not exist yet, or be empty."""

    data: str | None = None
    """What the model is scored on: file, folder, glob or hub id; several separated by commas.
    Absent: the built-in data of the task. How rows are read is said as in training:
    `--data.columns.text review` and its like."""

    calibration: CalibrationOptions = CalibrationOptions()
    """Which text goes through the model beforehand."""

    evaluate: Literal["both", "none"] = "both"
    """Score before and after, or not at all: then `--quantize` and `magnitude` need the memory of
    three files of the weights, not of the model."""

    max_length: Annotated[int, Field(gt=1)] = 1024
    """Tokens per sequence."""

    batch_size: Annotated[int, Field(gt=0)] = 1
    """Sequences in one forward pass of the evaluation."""

    device: str = "auto"
    """torch device; `auto` takes the accelerator when there is one."""

    as_json: Annotated[bool, Field(alias="json")] = False
    """Print one JSON object."""


class PlanOptions(Section):
    """Bytes and seconds of a run before anything is loaded, here or on other hardware."""

    gpus: str = ""
    """GPUs of each host, of another machine than this: `4x24GB`, `8xH100`, or `0` for none."""

    host_memory: str = ""
    """Memory of each host, such as `128GB`."""

    nvme: str = ""
    """Disk for offloaded tensors and the run folder: size, and GB/s read and written, such as
    `2TB@7/6`; each part may be left out."""

    hosts: str = ""
    """How many hosts like this there are. Several numbers, such as `1,2,4,...,1024` where the dots
    double, give a table."""

    scale: Literal["per_device", "global_batch"] = "per_device"
    """What stays the same in that table: the sequences of each rank, or those of a step."""

    tokens: str = "1B"
    """Of the data, for the table's time."""

    num_gpus: Annotated[int, Field(gt=0)] | None = None
    """Ranks of each host; absent: one per GPU, or one."""

    pcie: str = ""
    """Bytes per second each way between a GPU and its host, such as `25GB`."""

    network: str = ""
    """Between two hosts, bits or bytes per second: `10Gb`, `1.25GB`."""

    probe: bool = False
    """Measure this machine's links and one step of two layers of the model first; later plans here
    use what was measured. Takes about half a minute."""

    as_json: Annotated[bool, Field(alias="json")] = False
    """Print one JSON object."""


class SweepOptions(Section):
    """Train several times with other values of some settings, and keep the best."""

    search: str = ""
    """What to try: `SETTING=RANGE`, several separated by `;` or in flags of their own, or a YAML
    file. A range is `log(a,b)`, `uniform(a,b)`, `int(a,b)`, `int(a,b,step)` or `choice(x,y,z)`;
    for a grid, `log(a,b,n)` and `uniform(a,b,n)` are n values."""

    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How values are chosen: `tpe` near what was good so far, `random`, or every combination."""

    trials: Annotated[int, Field(gt=0)] | None = None
    """Runs in all; the first takes the settings as they stand. Absent: 20, or the whole grid."""

    metric: str = "eval_loss"
    """What decides, by its name in `metrics.jsonl`; its last value of a run counts, or that of the
    best checkpoint where runs keep it (`--checkpoint.best`)."""

    direction: Literal["auto", "minimize", "maximize"] = "auto"
    """Which values of the metric are better; `auto` knows those that bigft writes."""

    pruner: Literal["none", "median", "halving"] = "none"
    """When a run is stopped early, judged at every evaluation (`--eval_steps`): `median` below the
    middle of the others at that step, `halving` outside their best third."""

    num_gpus: Annotated[int, Field(gt=0)] | None = None
    """Ranks of each run, started by the `deepspeed` launcher; absent: one process without it."""

    keep: Literal["best", "all", "none"] = "best"
    """Whose checkpoints and exported model stay on the disk; metrics and logs always do."""

    as_json: Annotated[bool, Field(alias="json")] = False
    """Print one JSON object."""


class DoctorOptions(Section):
    """Look whether this host, or every host of a hostfile, is ready for a run."""

    hostfile: str | None = None
    """File with a line `NAME slots=N` per host: look at every one of them over ssh, compare them,
    and measure the network between them. Absent: look at this host."""

    num_gpus: Annotated[int, Field(gt=0)] | None = None
    """Ranks on this host; absent: one for each GPU, or one."""

    checks: list[
        Literal[
            "versions",
            "tools",
            "operators",
            "cpu",
            "limits",
            "memory",
            "storage",
            "gpu",
            "clock",
            "network",
        ]
    ] = []
    """Which parts to look at, separated by commas; absent: all. `network` is between the hosts of a
    hostfile."""

    fix: bool = False
    """Repair what is safe to repair: build operators and the native step, remove locks of killed
    builds and swap files of killed runs. Without it nothing is changed."""

    as_json: Annotated[bool, Field(alias="json")] = False
    """Print one JSON object. Exit code: 0 all is well; 4 it does not fit (memory, `/dev/shm`,
    disk); 6 a host, its tools or the network are not ready; 2 a path of the settings cannot be
    used. Of several the first of these."""


class RestartOptions(Section):
    """When a launch is started again after a crash."""

    max_restarts: Annotated[int, Field(ge=0)] = 0
    """Start again so often in all, from the newest committed checkpoint, when the run has crashed;
    never after a mistake that would be the same again (exit codes 2, 3, 4 and 7)."""

    min_hosts: Annotated[int, Field(gt=0)] | None = None
    """With `--max_restarts`: start again on fewer hosts, down to so many, when some are lost;
    absent: wait for all, half an hour at most."""


class RenderOptions(Section):
    """Scripts and manifests that start a run elsewhere."""

    render: Literal["slurm", "torchrun", "openmpi", "mpich", "kubernetes"] | None = None
    """Start nothing, and print what starts this run elsewhere."""

    nodes: Annotated[int, Field(gt=0)] = 1
    """With `--render` and no hostfile: hosts with `--num_gpus` ranks each."""

    image: str = "bigft:latest"
    """Container image, with `--render kubernetes`."""

    claim: str = "bigft"
    """Persistent volume claim that holds this folder, with `--render kubernetes`."""


class LaunchOptions(Section):
    """Start a run on several hosts, or on this one, watch it, and start it again after a crash.

    What is to be run stands behind `--`: `bigft launch --hostfile hosts -- train --config ...`.
    Ctrl-C stops it with everything committed (exit code 75), a second one at once. Other exit codes
    are those of the run; 6: a host, a rank or the network has failed.
    """

    hostfile: str | None = None
    """File with a line `NAME slots=N` per host, N being its ranks. Absent: this host alone."""

    include: str = ""
    """Hosts and slots to use, as DeepSpeed writes it: `worker-0@worker-1:0,2`; absent: all."""

    exclude: str = ""
    """Hosts and slots to leave out, written likewise."""

    num_gpus: Annotated[int, Field(gt=0)] | None = None
    """Ranks on this host, without a hostfile (with `--render` on each host); absent: one for each
    GPU, or one."""

    launcher: Literal["ssh", "openmpi", "mpich"] = "ssh"
    """What starts the ranks of a hostfile: ssh, or the `mpirun` of Open MPI or of MPICH."""

    master_addr: str | None = None
    """Address at which the ranks meet; absent: that of the first host, as the others reach it."""

    master_port: Annotated[int, Field(ge=1024, le=65535)] | None = None
    """Port at which the ranks meet; absent: one that is free on the first host."""

    check: Literal["full", "quick", "off"] | None = None
    """What is looked at on every host of a hostfile first. `full` (the default): all that the
    doctor knows; `quick`: whether it has the same code, versions and settings; `off`: only whether
    ssh works."""

    sync: bool = False
    """Copy this folder, with the code and the configuration, to the same place on every host first
    (rsync), without what `.gitignore` names, `runs/` and
    `--output_dir`; files that are there and not here stay."""

    env: list[str] = []
    """Names of environment variables that the ranks get beside a few harmless ones, separated by
    commas (`HF_TOKEN`). What is named here stands with its value on no command line."""

    restarting: RestartOptions = RestartOptions()
    """When it is started again."""

    elsewhere: RenderOptions = RenderOptions()
    """What to print instead."""


class SelftestOptions(Section):
    """Whether this install computes what plain torch does, on this hardware."""

    num_gpus: Annotated[int, Field(gt=0)] | None = None
    """Ranks, started by the `deepspeed` launcher; absent: one per GPU, 2 on a machine without."""

    rows: list[str] = []
    """Runs to try, by their names or the first words of them (`zero3,zero3_offload/adamw_8bit`,
    `*/bf16/*`); absent: all."""

    nvme_path: str | None = None
    """Folder on the disk that swap files of the runs on NVMe are to be tried on; absent: that of
    temporary files."""

    timeout: Annotated[float, Field(gt=0)] = 180.0
    """Seconds that one run, or the start of the ranks, may take before it counts as hanging."""

    as_json: Annotated[bool, Field(alias="json")] = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Command:
    """One verb of the command line."""

    summary: str
    word: str = ""
    """Name of the positional word; empty: the command takes none."""

    is_word_required: bool = True
    options: type[Section] | None = None
    """Options of the command; None: the settings of a run."""

    own: type[Section] | None = None
    """Options of the command beside the settings of a run."""

    repeatable: frozenset[str] = frozenset()
    """Own options that may be given several times; their texts are joined by `;`."""

    takes_config: bool = True
    """Of a command with the settings of a run: whether a DeepSpeed JSON is among them."""

    takes_rest: bool = False
    """Whether another command line follows behind `--`."""


COMMANDS: Mapping[str, Command] = {
    "train": Command("Fine-tune a model under ZeRO and leave one Hugging Face folder."),
    "launch": Command(
        "Start a run on several hosts, watch it, and start it again after a crash.",
        options=LaunchOptions,
        takes_rest=True,
    ),
    "plan": Command(
        "Say what a run will need and how long it will take, before anything is loaded.",
        own=PlanOptions,
    ),
    "data": Command(
        "Show what the tokenised data look like, with the tokens that count in the loss.",
        "FILE",
        is_word_required=False,
        takes_config=False,
    ),
    "consolidate": Command(
        "Turn a checkpoint into one Hugging Face folder.",
        "RUN_OR_CHECKPOINT",
        is_word_required=False,
        options=ConsolidateOptions,
    ),
    "evaluate": Command("Score a model folder, or two.", "MODEL", options=EvaluateOptions),
    "compress": Command(
        "Make a finished model smaller, and say what that costs.",
        "MODEL",
        options=CompressOptions,
    ),
    "sweep": Command(
        "Train several times with other settings, and keep the best.",
        own=SweepOptions,
        repeatable=frozenset({"search"}),
    ),
    "doctor": Command(
        "Look whether this host, or every host of a hostfile, is ready: what is missing, and what"
        " repairs it.",
        own=DoctorOptions,
    ),
    "generate": Command("Write text with a model folder.", "MODEL", options=GenerateOptions),
    "selftest": Command(
        "Try whether this install computes what plain torch does, on this hardware.",
        options=SelftestOptions,
    ),
    "explain": Command(
        "Say what a setting means, its default, its value and where that came from.",
        "SETTING",
        is_word_required=False,
    ),
}
"""Verb -> command. Each is `main(request)` in `bigft.commands.<verb>`."""


def options_of(model: type[Section]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the flag and field of every option: unlike settings, those in subsections stand flat.

    A subsection only keeps together what belongs together.
    """
    for path, info in fields_of(model):
        yield path.rpartition(".")[2], info


def _find_paths(model: type[Section]) -> dict[str, str]:
    return {path.rpartition(".")[2]: path for path, _ in fields_of(model)}


def _split_list(text: str, info: FieldInfo) -> str | list[str]:
    if get_origin(info.annotation) is not list:
        return text
    return [part.strip() for part in text.split(",") if part.strip()]


def read_options(request: Request, model: type[OptionsT]) -> OptionsT:
    """Check the options of a command.

    Raises:
        ConfigError: Options are unknown or do not fit; all are listed.
    """
    problems: list[str] = []
    known, paths = dict(options_of(model)), _find_paths(model)
    typed: dict[str, Typed] = {}
    for name, text in request.settings.items():
        if name not in known:
            near = suggest(name, known, prefix="--")
            repair = near or f"; `bigft {request.command} --help` lists them all"
            problems.append(f"--{name}: no such option of `bigft {request.command}`{repair}")
        else:
            typed[paths[name]] = Typed(_split_list(text, known[name]), f"flag --{name}")
    for name, value in (("config", request.config), ("recipe", request.recipe)):
        if value:
            problems.append(f"--{name}: `bigft {request.command}` does not take it")
    options = build_section(model, typed, problems)
    if problems:
        raise_together(ConfigError, problems)
    return options


def split_options(
    request: Request, model: type[OptionsT], problems: list[str]
) -> tuple[OptionsT, Request]:
    """Separate a command's own options from the settings of a run beside them.

    Returns:
        The options, and the request that is left for the run.
    """
    own = dict(fields_of(model))
    typed: dict[str, Typed] = {}
    rest: dict[str, str] = {}
    for name, text in request.settings.items():
        if name in own:
            typed[name] = Typed(_split_list(text, own[name]), f"flag --{name}")
        elif "." not in name and name not in FLAGS and (near := find_nearest(name, own)):
            problems.append(f"--{name}: no such option; did you mean --{near}?")
        else:
            rest[name] = text
    options = build_section(model, typed, problems)
    return options, replace(request, settings=rest)
