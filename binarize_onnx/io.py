"""Models in and out: files, external data, opset, metadata, and what graphsurgeon would drop on the way."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, EncodeError, Message
from onnx import inliner, numpy_helper, version_converter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from binarize_onnx import checks, external, fused, opset, order, scopes
from binarize_onnx.errors import ModelError

ModelLike = str | os.PathLike[str] | bytes | onnx.ModelProto

OURS = {opset.DOMAIN, opset.IDEAL_DOMAIN}
OLDEST_OPSET = 8
FUNCTION_OPSET = 13  # the function bodies are written in the operators of this opset
# The last opsets of what the converter changes: the batches of Scan, how an image is resized, and the axes of Hardmax.
CHANGED = {"Scan": 8, "Upsample": 9, "Resize": 10, "Hardmax": 12}
OLDEST_IR, NEWEST_IR = 8, 10  # functions need 8; the oldest onnxruntime we support reads no newer than 10
EXTERNAL_THRESHOLD = 1024  # bytes; smaller tensors stay in the file
LARGE = 1 << 14  # elements; the values of a larger initializer are read from the source and not copied
DATA_ALIGNMENT = 64  # bytes
PROTOBUF_LIMIT = 2**31 - 1  # bytes
ORT_MAGIC = b"ORTM"  # bytes 4 to 7 of onnxruntime's own format
ORT_PRIVATE = "com.microsoft.nchwc"  # the domain of layouts that onnxruntime chooses for one processor
STALE_AFTER = 3600  # seconds after which an unfinished file is taken for one that a killed process left


@dataclass(frozen=True)
class Source:
    """A model as it came: its proto, the sha256 of its bytes, its size with external data in bytes."""

    model: onnx.ModelProto
    sha256: str
    size: int


def load(model: ModelLike) -> onnx.ModelProto:
    """The model, its external data read in.

    Raises:
        ModelError: the file cannot be read or is not an ONNX model.
    """
    return read(model).model


def read(model: ModelLike) -> Source:
    """The model with its identity. See `load`."""
    if isinstance(model, onnx.ModelProto):
        checks.require_text(model)
        _refuse_external(model)
        try:
            data = model.SerializeToString(deterministic=True)
        except (EncodeError, ValueError) as error:
            raise ModelError(
                f"the model cannot be serialized ({error});", fix="save it with external data and give its path."
            ) from None
        return Source(model, hashlib.sha256(data).hexdigest(), len(data))
    if isinstance(model, bytes):
        parsed = _parse(model, "the given bytes")
        _refuse_external(parsed)
        return Source(parsed, hashlib.sha256(model).hexdigest(), len(model))
    path = Path(model)
    data = _read_file(path)
    proto, digest, size = _parse(data, str(path)), hashlib.sha256(data).hexdigest(), len(data)
    del data  # as large as the model: nothing that follows needs both
    size += external.load(checks.tensors(proto), path)
    return Source(proto, digest, size)


def prepare(model: onnx.ModelProto, *, lend: bool = False) -> onnx.ModelProto:
    """A copy of the model as the passes want it: opset 13 or newer, foreign functions inlined.

    Args:
        model: stays as it is.
        lend: leave the values of large initializers out of the copy where nothing but `import_graph`, which is then
            given `model` as well, will want them.

    Raises:
        ModelError: the opset is unknown, too old, or cannot be converted.
    """
    version, newest = default_opset(model), onnx.defs.onnx_opset_version()
    if version < OLDEST_OPSET:
        raise ModelError(f"opset {version} is too old;", fix=f"export with opset {OLDEST_OPSET} or newer.")
    if version > newest:
        raise ModelError(
            f"opset {version} is newer than the installed onnx package, which ends at {newest};",
            fix="upgrade onnx, or export with an older opset.",
        )
    checks.require_sound(model, version)
    _refuse_private(model)
    if lend and version >= FUNCTION_OPSET and _is_plain(model):
        return _lent(model)
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    foreign = [(f.domain, f.name) for f in prepared.functions if f.domain not in OURS]
    if foreign:
        with suppress(RuntimeError):  # a function of another opset stays a call, and its layers stay float
            prepared = inliner.inline_selected_functions(prepared, foreign)
        checks.require_sound(prepared, version)  # sound parts do not always make a sound whole
        _refuse_private(prepared)
    if version < FUNCTION_OPSET:
        _refuse_changed(prepared, version)
        try:
            prepared = version_converter.convert_version(prepared, FUNCTION_OPSET)
        except Exception as error:  # the converter raises whatever its C++ side threw
            raise ModelError(
                f"opset {version} could not be converted to {FUNCTION_OPSET}: {str(error).strip()};",
                fix=f"export with opset {FUNCTION_OPSET} or newer.",
            ) from None
    return prepared


def _refuse_changed(model: onnx.ModelProto, version: int) -> None:
    """Refuse what onnx's converter turns into something else than it is.

    Raises:
        ModelError: the model has an operator that means another thing in newer opsets, and is converted as if not.
    """
    for node in checks.nodes(model.graph):
        newest = CHANGED.get(node.op_type, 0) if node.domain in ("", "ai.onnx") else 0
        if version <= newest:
            raise ModelError(
                f"node {node.name or node.output[0]} ({node.op_type}) of opset {version} cannot be converted as it is;",
                fix=f"export with opset {max(newest + 1, FUNCTION_OPSET)} or newer.",
            )


def _is_plain(model: onnx.ModelProto) -> bool:
    """Whether the model's nodes are standard ones, onnxruntime's or ours, without functions of others or subgraphs.

    Preparing any other may read its initializers, or hand them on to subgraphs.
    """
    domains = {"", "ai.onnx", fused.MICROSOFT, *OURS}
    plain = all(
        n.domain in domains and not any(a.HasField("g") or a.graphs for a in n.attribute) for n in model.graph.node
    )
    return plain and all(f.domain in OURS for f in model.functions)


def _is_large(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.HasField("raw_data")) and prod(tensor.dims) > LARGE


def _lent(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model whose large initializers have names, types and shapes, and no values."""
    copy = onnx.ModelProto()
    _copy_fields(model, copy, leave_out="graph")
    _copy_fields(model.graph, copy.graph, leave_out="initializer")
    for tensor in model.graph.initializer:
        if _is_large(tensor):
            copy.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            copy.graph.initializer.append(tensor)
    return copy


def _copy_fields(source: Message, copy: Message, leave_out: str) -> None:
    """Every field of a message but one."""
    for field, value in source.ListFields():
        if field.name == leave_out:
            continue
        if isinstance(value, Message):
            getattr(copy, field.name).CopyFrom(value)
        elif isinstance(value, (bool, bytes, float, int, str)):
            setattr(copy, field.name, value)
        else:
            getattr(copy, field.name).extend(value)


def import_graph(model: onnx.ModelProto, lender: onnx.ModelProto | None = None) -> gs.Graph:
    """A prepared model as a graphsurgeon graph, without its functions, which `export_graph` attaches again.

    (graphsurgeon's sort does not end on a graph that has functions and subgraphs.)

    Args:
        model: what `prepare` made.
        lender: what it was made of, if that keeps the values of large initializers.

    Raises:
        ModelError: the nodes cannot be put in order.
    """
    functions = list(model.functions)
    del model.functions[:]
    try:
        with _quiet_graphsurgeon():
            graph = gs.import_onnx(model)
        if lender is not None:
            _take_back(graph, lender)
        order.sort(graph)
    except (order.CycleFound, gs.OnnxGraphSurgeonException) as error:
        raise ModelError(f"the graph cannot be put in order: {error}.", fix=checks.DAMAGED) from None
    except KeyError as error:  # graphsurgeon looks element types up in a table
        raise ModelError(f"a tensor is declared with the unknown element type {error}.", fix=checks.DAMAGED) from None
    finally:
        model.functions.extend(functions)
    return graph


def _take_back(graph: gs.Graph, lender: onnx.ModelProto) -> None:
    """Let the constants that `prepare` left without values read those of the model that it was given."""
    values = {tensor.name: tensor for tensor in lender.graph.initializer if _is_large(tensor)}
    for tensor in [*graph.tensors().values(), *graph.outputs]:
        if isinstance(tensor, gs.Constant) and tensor.name in values:
            tensor.values = LazyValues(values[tensor.name])


def export_graph(graph: gs.Graph, source: onnx.ModelProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """The graph as a model that runs anywhere.

    Bodies of our ops in use are attached, their domains imported, and what graphsurgeon drops is taken from `source`:
    producer, documentation, metadata, and the annotations of nodes and tensors that are still there.
    """
    version = default_opset(source)
    _type_empty_lists(graph)
    with _quiet_graphsurgeon():
        model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    for node in checks.nodes(model.graph):
        node.op_type = node.op_type.removeprefix(checks.ASIDE)
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                attribute.ClearField("ref_attr_name")
    _unload_inner_graphs(model.graph, source.graph)
    model.ir_version = min(max(source.ir_version, OLDEST_IR), NEWEST_IR)
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    model.domain, model.model_version, model.doc_string = source.domain, source.model_version, source.doc_string
    _restore_annotations(model.graph, source.graph)
    del model.functions[:]
    model.functions.extend(opset.functions_in_use(model))
    used = {f.domain for f in model.functions}
    others = [o for o in source.opset_import if o.domain not in ("", "ai.onnx", *used)]
    known = {(f.domain, f.name) for f in model.functions}
    model.functions.extend(f for f in source.functions if f.domain not in OURS or _is_in_use(f, model, known))
    del model.opset_import[:]
    model.opset_import.extend([onnx.helper.make_opsetid("", version), *others])
    model.opset_import.extend(onnx.helper.make_opsetid(domain, opset.VERSION) for domain in sorted(used))
    entries = {p.key: p.value for p in source.metadata_props} | dict(metadata)
    del model.metadata_props[:]
    for key in sorted(entries):
        model.metadata_props.add(key=key, value=entries[key])
    return model


def save(model: onnx.ModelProto, path: str | os.PathLike[str], *, external_data: bool = False) -> None:
    """Write the model atomically: after a crash at any moment `path` holds the old model whole or the new one.

    With `external_data`, tensors of more than 1 kB go to `NAME.<12 hex digits>.data` beside it, which is there first;
    a data file of ours that the old model named is removed last. Of two processes that save the same file at once the
    last wins, and the data file of the other stays.

    Raises:
        ModelError: the model cannot be written there, or is too large for one file.
    """
    target = Path(path)
    blob = b""
    if external_data and target.is_symlink():
        raise ModelError("is a link, and external data lies beside the file;", where=str(target), fix="name the file.")
    if external_data:
        try:
            model, blob = _externalise(model, target.name)
        except UnicodeEncodeError:  # the model names its data file, as text
            raise ModelError("has a name that is not UTF-8;", where=repr(str(target)), fix="choose another.") from None
    try:
        data = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError):
        data = b""
    if not data or len(data) > PROTOBUF_LIMIT:
        raise ModelError(
            "the model does not fit into one protobuf file of 2 GB;", where=str(target), fix="write external data."
        )
    kept = _data_name(target.name, blob) if blob else None
    earlier = _data_files(target)
    try:
        with atomic_write(target) as file:
            file.write(data)
            if kept is not None:
                _to_disk(file)  # what can fail has happened, then, when the data file gets its name
                with atomic_write(target.parent / kept) as data_file:
                    data_file.write(blob)
        if kept is not None and not (target.parent / kept).exists():
            # The old model named it too, so another process that saved meanwhile took it for one of the past.
            with atomic_write(target.parent / kept) as data_file:
                data_file.write(blob)
    except OSError as error:
        raise ModelError(f"cannot be written: {error.strerror or error}.", where=str(target)) from None
    for path in earlier:
        if path.name != kept:
            with suppress(OSError):
                path.unlink()


def _data_files(target: Path) -> list[Path]:
    """The data files of ours that the model at `target` names; none if there is no model."""
    target = Path(os.path.realpath(target))
    found = list(target.parent.glob(f"{_glob_escape(target.name)}.{'[0-9a-f]' * 12}.data"))
    if not found:
        return []
    try:
        named = {external.location(tensor) for tensor in checks.tensors(_parse(_read_file(target), str(target)))}
    except ModelError:
        return []
    return [path for path in found if path.name in named]


def byte_size(model: onnx.ModelProto) -> int:
    """Size of the serialized model in bytes, also where protobuf refuses to serialize it."""
    bare = onnx.ModelProto()
    tensors = list(model.graph.initializer)
    total = sum(len(t.raw_data) if t.HasField("raw_data") else t.ByteSize() for t in tensors)
    if total < PROTOBUF_LIMIT // 2:
        return int(model.ByteSize())
    bare.graph.node.extend(model.graph.node)
    bare.functions.extend(model.functions)
    return int(bare.ByteSize()) + total


@contextmanager
def atomic_write(target: Path) -> Iterator[IO[bytes]]:
    """A binary file that becomes `target`, synced to disk, when the block ends well, and vanishes when it does not."""
    target = Path(os.path.realpath(target))  # of a link, what it points to is replaced and the link stays
    mode = None
    with suppress(FileNotFoundError):
        mode = os.stat(target).st_mode
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no plain file")
    name = target.parent / f"{_part_prefix(target)}{secrets.token_hex(8)}.part"
    # Of a new file the kernel takes the umask off; what replaces a private file is never open to others.
    descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            _to_disk(file)
        if mode is not None:
            os.chmod(name, mode & 0o777)
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    _sync_folder(target.parent)
    _remove_leftovers(target)


def _part_prefix(target: Path) -> str:
    """How the names of unfinished files begin: a hash of the target's name, which may be as long as names get."""
    return f".binarize-onnx-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]}-"


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the new name last: without it a power cut may keep the model and lose the data file before it."""
    with suppress(OSError):  # some file systems have no such call, and need none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Drop what killed processes left of the same file; one younger than `STALE_AFTER` may still be at work."""
    for part in target.parent.glob(f"{_part_prefix(target)}*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > STALE_AFTER:
                part.unlink()


def newer_ops(model: onnx.ModelProto) -> list[str]:
    """Names of the ops of our domain that this version does not know: they run by the definitions in the file."""
    return sorted({n.op_type for n in model.graph.node if n.domain == opset.DOMAIN and n.op_type not in opset.OPS})


def default_opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators that the model imports.

    Raises:
        ModelError: it imports none, or two.
    """
    versions = {int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    if len(versions) > 1:
        raise ModelError(
            f"the model imports the standard operators in versions {sorted(versions)};", fix="export it again."
        )
    if versions:
        return versions.pop()
    raise ModelError("the model imports no standard operator set;", fix="it may be damaged: export it again.")


def _read_file(path: Path) -> bytes:
    """The bytes of a plain file that can be one protobuf; anything else is refused unread (a pipe would wait)."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(found.st_mode):
            raise ModelError("is no plain file.", where=str(path))
        if found.st_size > PROTOBUF_LIMIT:
            raise ModelError(
                f"is no ONNX model: it has {found.st_size} bytes, and a protobuf file at most {PROTOBUF_LIMIT}.",
                where=str(path),
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        words = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ModelError(f"cannot be read: {words}.", where=str(path)) from None


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    if data[4:8] == ORT_MAGIC:
        raise ModelError(
            "is an ORT-format model (.ort), which onnxruntime writes for itself;",
            where=where,
            fix="give the .onnx file that it was made from.",
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RuntimeError):
        raise ModelError(f"is {_kind(data)}", where=where) from None
    if not model.ir_version or not model.opset_import or not model.HasField("graph"):
        raise ModelError("is not an ONNX model: it has no graph, IR version or operator set.", where=where)
    checks.require_text(model)
    return model


def _kind(data: bytes) -> str:
    """What a file that is no model is, where its first bytes tell."""
    if data.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs, not the model: run `git lfs pull`."
    if data.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"PK\x03\x04", b"BZh", b"\x28\xb5\x2f\xfd")):
        return "not an ONNX model but an archive: unpack it."
    return "not an ONNX model, or is cut short."


def _quiet_graphsurgeon() -> AbstractContextManager[Any]:
    """It prints warnings on stdout, where data goes."""
    quiet: AbstractContextManager[Any] = G_LOGGER.suppress(G_LOGGER.CRITICAL + 1)
    return quiet


def _refuse_private(model: onnx.ModelProto) -> None:
    """Ops that have no definition: onnxruntime's private ones, and those of a newer version of this package."""
    defined = {(f.domain, f.name) for f in model.functions}
    for node in model.graph.node:
        where = f"node {node.name or (node.output[0] if node.output else '?')} ({node.op_type})"
        if node.domain == ORT_PRIVATE:
            raise ModelError(
                f"belongs to onnxruntime's private domain {ORT_PRIVATE}: the file was saved by its optimizer;",
                where=where,
                fix="give the model that the session was made from.",
            )
        if node.domain == opset.DOMAIN and node.op_type not in opset.OPS and (node.domain, node.op_type) not in defined:
            raise ModelError(
                f"is no op of {opset.DOMAIN} {opset.VERSION}, and the file does not define it:",
                where=where,
                fix="the file was made by a newer version; upgrade binarize-onnx.",
            )


def _refuse_external(model: onnx.ModelProto) -> None:
    """A model in memory has no folder to find its data in."""
    for tensor in checks.tensors(model):
        if external.location(tensor) is not None:
            raise ModelError(
                f"tensor `{tensor.name}` is in an external file ({external.location(tensor)});",
                fix="give the model's path, or load its data first.",
            )


def _is_in_use(function: onnx.FunctionProto, model: onnx.ModelProto, known: set[tuple[str, str]]) -> bool:
    """Whether nodes call a function of ours that only the source defines: an op newer than this version."""
    name = (function.domain, function.name)
    return name not in known and any((n.domain, n.op_type) == name for n in model.graph.node)


def _type_empty_lists(graph: gs.Graph) -> None:
    """graphsurgeon asks the first element of a list for its type; it takes a type from a reference, here to nothing."""
    for node in graph.nodes:
        for name, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                _type_empty_lists(value)
            elif isinstance(value, list) and not value:
                node.attrs[name] = gs.Node.AttributeRef("", checks.element_type_of(node, name))


def _unload_inner_graphs(graph: onnx.GraphProto, source: onnx.GraphProto) -> None:
    """Take out of branches and bodies what graphsurgeon copies into them: constants and types of the graph around."""
    outer = {tensor.name for tensor in source.initializer}
    present = {tensor.name for tensor in graph.initializer}
    for inner in (inner for node in scopes.nodes(graph) for inner in scopes.subgraphs(node)):
        own = scopes.given(inner)
        claims = [value for value in inner.value_info if value.name in own - outer]
        constants = [tensor for tensor in inner.initializer if tensor.name not in outer]
        for tensor in inner.initializer:
            if tensor.name in outer - present:
                present.add(tensor.name)
                graph.initializer.append(tensor)
        if len(claims) < len(inner.value_info) or len(constants) < len(inner.initializer):
            kept = onnx.GraphProto(value_info=claims, initializer=constants)
            del inner.value_info[:], inner.initializer[:]
            inner.MergeFrom(kept)


def _restore_annotations(graph: onnx.GraphProto, source: onnx.GraphProto) -> None:
    """Node and tensor annotations of everything that kept its name; same names hold the same values."""
    originals = {node.output[0]: node for node in source.node if node.output}
    for node in graph.node:
        original = originals.get(node.output[0]) if node.output else None
        if original is not None and (original.op_type, original.domain) == (node.op_type, node.domain):
            node.doc_string = original.doc_string
            node.metadata_props.extend(original.metadata_props)
    graph.doc_string = source.doc_string
    del graph.value_info[:]  # graphsurgeon lists our new tensors there, without shapes
    graph.metadata_props.extend(source.metadata_props)
    alive = {name for node in graph.node for name in [*node.input, *node.output]}
    declared = {v.name for v in [*graph.value_info, *graph.input, *graph.output]}
    graph.value_info.extend(v for v in source.value_info if v.name in alive and v.name not in declared)
    graph.quantization_annotation.extend(q for q in source.quantization_annotation if q.tensor_name in alive)
    documented = {v.name: v for v in [*source.input, *source.output]}
    for value in [*graph.input, *graph.output]:
        if value.name in documented:
            value.CopyFrom(documented[value.name])


def _externalise(model: onnx.ModelProto, name: str) -> tuple[onnx.ModelProto, bytes]:
    """The model with its large initializers pointing into one aligned blob."""
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    blob = bytearray()
    places: list[tuple[onnx.TensorProto, int, int]] = []
    for tensor in moved.graph.initializer:
        if tensor.data_type == onnx.TensorProto.STRING:
            continue
        raw = tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
        if len(raw) > EXTERNAL_THRESHOLD:
            blob.extend(b"\0" * (-len(blob) % DATA_ALIGNMENT))
            places.append((tensor, len(blob), len(raw)))
            blob.extend(raw)
    location = _data_name(name, bytes(blob))
    for tensor, offset, length in places:
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    return moved, bytes(blob)


def _data_name(name: str, blob: bytes) -> str:
    return f"{name}.{hashlib.sha256(blob).hexdigest()[:12]}.data"


def _glob_escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
