"""The files of a hub model, on this host."""

from pathlib import Path

from bigft.errors import CheckpointError, ConfigError
from bigft.models.facts import ModelFacts, is_local, read_facts
from bigft.models.section import ModelSection

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

_ASSETS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*")
_NO_ASSETS = ("*.index.json", "*/*.json")


def fetch_weights(section: ModelSection, facts: ModelFacts) -> tuple[Path, ...]:
    """Return a model's weight files, downloading those of a hub model into the hub's cache.

    Call it on one rank of each host first: afterwards the files come from the cache.

    Returns:
        Safetensors files where the model has them; for a hub model with other formats nothing,
        and transformers downloads them while loading.

    Raises:
        CheckpointError: The hub cannot be reached or refuses.
    """
    if is_local(section.name) or section.name == "builtin":
        return facts.weight_files
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    revision = section.revision or "main"
    options = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    try:
        index = cached_file(section.name, _INDEX, **options)
        if index is not None:
            files, _ = get_checkpoint_shard_files(section.name, index, revision=revision)
            return tuple(Path(file) for file in files)
        single = cached_file(section.name, _SINGLE, **options)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"--model {section.name}: its weights cannot be downloaded"
            f" ({str(error).splitlines()[0]}); check the name, your login and the network, or give"
            " a folder"
        ) from error
    return () if single is None else (Path(single),)


def fetch_assets(name: str) -> Path:
    """Return a folder with a model's configuration and tokenizer, or its `config.json` alone.

    Args:
        name: Folder, `config.json`, or hub id; the files of a hub model come into its cache.

    Raises:
        ConfigError: There is no such model, or it has no usable `config.json`.
    """
    facts = read_facts(ModelSection(name=name), find_weights=False)
    if name == "builtin":
        raise ConfigError(
            "--model builtin: has no files to copy; give a folder with a config.json, or a hub id"
        )
    if is_local(name):
        return Path(name).expanduser()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted, unwanted = list(_ASSETS), list(_NO_ASSETS)
    try:
        folder = snapshot_download(facts.source, allow_patterns=wanted, ignore_patterns=unwanted)
        return Path(folder)
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ConfigError(
            f"--model {name}: its configuration and tokenizer cannot be downloaded"
            f" ({str(error).strip().splitlines()[0]}); check the network, or give a folder"
        ) from error
