"""Our format: what is written is what is read, and no damaged or hostile file gets further than one clear error."""

import json
import os
import pickle
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from dictionaries import D_IN, D_SAE, as_in_production, random_sae, statistics_of
from safetensors.torch import load_file, save_file

from hfsae.dictionary import SAE
from hfsae.errors import CheckpointError, CheckpointNotFound, HfsaeError, HfsaeWarning, InvalidValue, Mismatch
from hfsae.formats import native
from hfsae.formats.files import read_json, safe_name, write_folder_atomically
from hfsae.formats.safetensors_io import read_header, read_tensors

PLACE = "resid_post.layer_8"


@pytest.fixture
def folder(tmp_path):
    """The folder of a saved jumprelu dictionary with statistics and a label."""
    sae = random_sae("jumprelu", site="resid_post", layer=8, base_model="me/model")
    sae.statistics = statistics_of(sae)
    return sae.save_pretrained(tmp_path / "repository")


def _packed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def _twice(a: str, b: str) -> bytes:
    return f'{{"a": {a}, "a": {b}}}'.encode()


ONE = json.dumps(_entry())
CONTAINERS = {
    "empty": (b"", "has 0 bytes"),
    "shorter than a header": (b"\x05\x00\x00", "has 3 bytes"),
    "header beyond the file": (_packed({}, length=4096), "declares a header of 4096 bytes in a file of 10"),
    "header of zero": (struct.pack("<Q", 0) + b"{}", "declares a header of 0 bytes"),
    "header near 2**63": (_packed({}, length=2**63 - 1), "declares a header of 9223372036854775807"),
    "header no JSON": (_packed(b"{not json"), "is no valid JSON"),
    "header no UTF-8": (_packed(b'{"\xff": 1}'), "is not UTF-8"),
    "header a list": (_packed([1]), "holds a list"),
    "nested deep": (_packed(b"[" * 200_000), "nested too deep"),
    "100,000 keys": (_packed({str(i): _entry() for i in range(100_000)}), "declares 100000 tensors"),
    "cut off": (_packed({"a": _entry(shape=(4,), offsets=(0, 16))}, b"\0" * 9), "7 bytes are missing"),
    "one byte short": (_packed({"a": _entry()}, b"\0" * 7), "1 bytes are missing"),
    "trailing bytes": (_packed({"a": _entry()}, b"\0" * 9), "has 1 bytes too many"),
    "overlap": (_packed({"a": _entry(), "b": _entry(offsets=(4, 12))}, b"\0" * 12), "overlaps another tensor"),
    "hole": (_packed({"a": _entry(), "b": _entry(offsets=(12, 20))}, b"\0" * 20), "leaves a hole"),
    "offsets reversed": (_packed({"a": _entry(offsets=(8, 0))}, b"\0" * 8), "spans -8 bytes"),
    "offsets negative": (_packed({"a": _entry(offsets=(-8, 0))}, b"\0" * 8), "They must be two positions"),
    "three offsets": (_packed({"a": _entry(offsets=(0, 4, 8))}, b"\0" * 8), "They must be two positions"),
    "duplicate keys": (_packed(_twice(ONE, ONE), b"\0" * 8), "holds the key 'a' twice"),
    "unknown dtype": (_packed({"a": _entry(dtype="F31")}, b"\0" * 8), "has the dtype 'F31'"),
    "lying dtype": (_packed({"a": _entry(dtype="F64")}, b"\0" * 8), "spans 8 bytes. Its shape"),
    "dtype no string": (_packed({"a": _entry(dtype=["F32"])}, b"\0" * 8), "has the dtype"),
    "negative shape": (_packed({"a": _entry(shape=(-2, -1))}, b"\0" * 8), "It must be at most 8 sizes"),
    "float shape": (_packed({"a": _entry(shape=(2.0,))}, b"\0" * 8), "It must be at most 8 sizes"),
    "bool shape": (_packed({"a": _entry(shape=(True,))}, b"\0" * 8), "It must be at most 8 sizes"),
    "shape overflows": (_packed({"a": _entry(shape=(2**62, 2**62))}, b"\0" * 8), "spans 8 bytes"),
    "terabytes declared": (_packed({"a": _entry(shape=(10**12,), offsets=(0, 4 * 10**12))}), "is cut off"),
    "metadata no text": (_packed({"__metadata__": {"a": 1}}), "its metadata is not text"),
    "entry with more": (_packed({"a": _entry() | {"more": 1}}, b"\0" * 8), "without exactly dtype"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
    "HTML page": (b"<!DOCTYPE html><html></html>", "is an HTML or XML page"),
    "pickle": (pickle.dumps({"a": 1}), "never unpickled"),
    "torch zip": (b"PK\x03\x04" + b"\0" * 60, "never unpickled"),
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_a_damaged_container_is_one_clear_error(folder, case):
    data, message = CONTAINERS[case]
    (folder / native.WEIGHTS).write_bytes(data)
    with as_in_production(), pytest.raises(CheckpointError, match=r"sae\.safetensors") as caught, _quickly():
        SAE.from_pretrained(folder)
    assert message in str(caught.value)


def _no_file(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _edit(change):
    def damage(folder: Path) -> None:
        tensors = load_file(folder / native.WEIGHTS)
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        change(tensors)
        save_file(tensors, folder / native.WEIGHTS)

    return damage


def _put(name, value):
    return _edit(lambda t: t.__setitem__(name, value(t[name])))


def _set_at(position, number):
    def value(tensor):
        tensor.view(-1)[position] = number
        return tensor

    return value


TENSORS = {
    "NaN": (_put("W_enc", _set_at(17, float("nan"))), "'W_enc' holds 1 numbers that are NaN"),
    "Inf": (_put("W_dec", _set_at(17, float("inf"))), "'W_dec' holds 1 numbers that are NaN"),
    "NaN threshold": (_put("threshold", _set_at(3, float("nan"))), "'threshold' holds 1 numbers"),
    "Inf bias": (_put("b_dec", _set_at(0, float("-inf"))), "'b_dec' holds 1 numbers"),
    "integers": (_put("W_enc", lambda t: t.to(torch.int32)), "'W_enc' holds torch.int32"),
    "bools": (_put("b_enc", lambda t: t > 0), "'b_enc' holds torch.bool"),
    "transposed": (_put("W_enc", lambda t: t.T.contiguous()), "It is the transpose"),
    "extra dimension": (_put("W_enc", lambda t: t[None]), "'W_enc' is [1, 57, 12]. It must be [57, 12]"),
    "scalar": (_put("threshold", lambda t: t[0].clone()), "'threshold' is []. It must be [57]"),
    "length one": (_put("b_enc", lambda t: t[:1].clone()), "'b_enc' is [1]. It must be [57]"),
    "missing": (_edit(lambda t: t.pop("threshold")), "has no tensor 'threshold'"),
    "extra": (_edit(lambda t: t.update(more=torch.zeros(2))), "unexpected tensor 'more'"),
    "renamed": (_edit(lambda t: t.update(w_enc=t.pop("W_enc"))), "has no tensor 'W_enc'"),
    "rows permuted": (_put("W_dec", lambda t: t.roll(1, 0).contiguous()), "'W_dec' does not match its fingerprint"),
    "columns permuted": (_put("W_enc", lambda t: t.roll(1, 1).contiguous()), "'W_enc' does not match its fingerprint"),
    "one weight changed": (_put("W_enc", _set_at(40, 9.0)), "'W_enc' does not match its fingerprint in 1 of 57 rows"),
    "one bias changed": (_put("b_enc", _set_at(5, 9.0)), "does not match its fingerprint in 1 of 57 rows (row 5"),
    "a threshold changed": (_put("threshold", _set_at(5, 9.0)), "does not match its fingerprint in 1 of 57 rows"),
    "b_dec changed": (_put("b_dec", _set_at(5, 9.0)), "'b_dec' gives"),
    "matrices exchanged": (
        _edit(lambda t: t.update(W_enc=t["W_dec"].clone(), W_dec=t["W_enc"].clone())),
        "does not match its fingerprint in 57 of 57 rows",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_damaged_weights_are_one_clear_error(folder, case):
    damage, message = TENSORS[case]
    damage(folder)
    with as_in_production(), pytest.raises(CheckpointError, match=r"sae\.safetensors") as caught, _quickly():
        SAE.from_pretrained(folder)
    assert message in str(caught.value)


def _bytes(data: bytes):
    return lambda folder: (folder / native.CONFIG).write_bytes(data)


def _field(**fields):
    def damage(folder: Path) -> None:
        values = json.loads((folder / native.CONFIG).read_text())
        values = {k: v for k, v in (values | fields).items() if v is not ...}
        (folder / native.CONFIG).write_text(json.dumps(values))

    return damage


CONFIGS = {
    "empty": (_bytes(b""), "no valid JSON"),
    "cut": (_bytes(b'{"architecture": "jumpr'), "no valid JSON (line 1)"),
    "list": (_bytes(b"[]"), "holds a list"),
    "null": (_bytes(b"null"), "holds a NoneType"),
    "UTF-16": (_bytes('{"a": 1}'.encode("utf-16")), "is not UTF-8"),
    "nested deep": (_bytes(b'{"a":' * 100_000), "nested too deep"),
    "huge integer": (_bytes(b'{"d_in": 1' + b"0" * 5000 + b"}"), "no valid JSON"),
    "NaN": (_bytes(b'{"scale": NaN}'), "holds the number NaN"),
    "duplicate keys": (_bytes(b'{"d_in": 1, "d_in": 2}'), "holds the key 'd_in' twice"),
    "50 MB": (_bytes(b'{"a": "' + b"x" * 50_000_000 + b'"}'), "It is no config"),
    "future version": (_field(format_version=2), "format_version 2; this hfsae reads up to 1. Upgrade"),
    "version no integer": (_field(format_version="1"), "format_version '1'"),
    "version missing": (_field(format_version=...), "format_version None"),
    "no fingerprint": (_field(fingerprint=...), "has no fingerprint"),
    "no architecture": (_field(architecture=...), "has no 'architecture'"),
    "no d_in": (_field(d_in=...), "has no 'd_in'"),
    "d_in of another": (_field(d_in=13), "is [57, 12]. It must be [57, 13]"),
    "d_in absurd": (_field(d_in=10**12), "d_in=1000000000000 is out of range"),
    "d_in a string": (_field(d_in="12"), "d_in='12' is of type str"),
    "d_sae of another": (_field(d_sae=58), "It must be [58"),
    "another architecture": (_field(architecture="standard"), "unexpected tensor 'threshold'"),
    "unknown architecture": (_field(architecture="mystery"), "architecture='mystery' is unknown"),
    "dtype of torch": (_field(dtype="load"), "dtype='load' is unknown"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_damaged_config_is_one_clear_error(folder, case):
    damage, message = CONFIGS[case]
    damage(folder)
    with as_in_production(), pytest.raises(CheckpointError, match=r"resid_post\.layer_8") as caught, _quickly():
        SAE.from_pretrained(folder, format="hfsae")
    assert message in str(caught.value)


def test_a_byte_order_mark_is_accepted(folder):
    path = folder / native.CONFIG
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert SAE.from_pretrained(folder).config.d_in == D_IN


def test_requests_for_code_and_devices_are_said_and_ignored(folder):
    _field(auto_map={"AutoModel": "evil.py"}, device="cuda:7")(folder)
    with pytest.warns(HfsaeWarning, match="auto_map, device"):
        assert SAE.from_pretrained(folder).W_enc.device.type == "cpu"


@pytest.mark.parametrize("name", [native.CONFIG, native.WEIGHTS, native.STATISTICS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises((CheckpointNotFound, CheckpointError), match=r"resid_post\.layer_8"):
        native.read(folder)


@pytest.mark.parametrize("name", [native.CONFIG, native.WEIGHTS, native.STATISTICS])
@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "unreadable"])
def test_only_regular_files_are_opened(folder, name, kind):
    path = folder / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes(b"{}")
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user reads everything")
    with pytest.raises(CheckpointError, match=name), _quickly():
        native.read(folder)


def test_a_link_to_a_private_file_is_never_quoted(folder, tmp_path):
    (tmp_path / "private").write_text('{"password": "hunter2')
    for name in (native.CONFIG, native.WEIGHTS):
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "private")
        with pytest.raises(HfsaeError) as caught:
            native.read(folder)
        assert "hunter2" not in str(caught.value)


def test_a_pickle_beside_a_good_dictionary_is_not_touched(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    for name in ("pytorch_model.bin", "ae.pt", "sae.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert native.read(folder).config.d_in == D_IN
    assert not (tmp_path / "exploded").exists()


def test_statistics_of_another_width_or_sign_are_refused(folder):
    stats = load_file(folder / native.STATISTICS)
    save_file(stats | {"density": torch.zeros(3)}, folder / native.STATISTICS)
    with pytest.raises(CheckpointError, match=r"'density' is \[3\]"):
        native.read(folder)
    save_file(stats | {"density": -torch.ones(D_SAE)}, folder / native.STATISTICS)
    with pytest.raises(CheckpointError, match=r"stats.safetensors: .*density that is negative"):
        native.read(folder)


def test_rows_are_verified_by_their_own_probes(folder):
    whole = SAE.from_pretrained(folder)
    _put("W_dec", _set_at(5 * D_IN, 99.0))(folder)
    part = SAE.from_pretrained(folder, features=[6, 50])
    assert torch.equal(part.W_dec, whole.W_dec[[6, 50]])
    assert torch.equal(part.statistics.max, whole.statistics.max[[6, 50]])
    with pytest.raises(CheckpointError, match="does not match its fingerprint in 1 of 2 rows"):
        SAE.from_pretrained(folder, features=[6, 5])
    with pytest.raises(InvalidValue, match="names a feature twice"):
        SAE.from_pretrained(folder, features=[6, 6])


def test_weights_that_are_odd_but_sound_warn(folder, tmp_path):
    sae = random_sae("topk", site="resid_post", layer=1)
    sae.W_dec.data[7] = 0
    with pytest.warns(HfsaeWarning, match="1 decoder rows are all zero"):
        SAE.from_pretrained(sae.save_pretrained(tmp_path / "zero"))
    sae.W_dec.data[7] = 1e36
    with pytest.warns(HfsaeWarning, match="so large"):
        SAE.from_pretrained(sae.save_pretrained(tmp_path / "large"))


def test_labels_out_of_range_are_refused(folder):
    (folder / native.LABELS).write_text('{"57": {"text": "too far"}}')
    with pytest.raises(CheckpointError, match=r"labels.json: the label '57'"):
        native.read(folder)


def test_the_index_lists_every_dictionary_with_its_hashes(folder):
    import hashlib

    random_sae("topk", site="resid_post", layer=2, base_model="me/model").save_pretrained(folder.parent)
    index = read_json(folder.parent / "config.json")["dictionaries"]
    assert sorted(index) == ["resid_post.layer_2", PLACE]
    for place, entry in index.items():
        assert {"config.json", "sae.safetensors", "stats.safetensors"} <= set(entry["files"])
        for name, facts in entry["files"].items():
            data = (folder.parent / place / name).read_bytes()
            assert facts == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_repository_is_of_one_base_model(folder):
    with pytest.raises(Mismatch, match="of 'me/model'; this dictionary is of 'me/other'"):
        random_sae(site="resid_post", layer=2, base_model="me/other").save_pretrained(folder.parent)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match="is no index of dictionaries"):
        random_sae().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def test_saving_again_replaces_and_keeps_an_evaluation_of_the_same_weights(folder):
    sae = SAE.from_pretrained(folder)
    (folder / native.EVALUATION).write_text('{"l0": 3}')
    sae.save_pretrained(folder.parent)
    assert (folder / native.EVALUATION).exists()
    sae.W_enc.data.mul_(2)
    sae.save_pretrained(folder.parent)
    assert not (folder / native.EVALUATION).exists()
    assert torch.equal(SAE.from_pretrained(folder).W_enc, sae.W_enc)


def test_files_are_readable_by_others_and_nothing_is_left_aside(folder):
    paths = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o644}
    assert not list(folder.parent.parent.glob(".*"))


def test_a_failed_write_changes_nothing(folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def fail(aside: Path) -> None:
        (aside / "half").write_text("written")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        write_folder_atomically(folder, fail)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["config.json", PLACE]


def test_what_a_killed_writer_left_is_swept(tmp_path):
    asides = []
    write_folder_atomically(tmp_path / "new", asides.append)
    _, host, _, unique = asides[0].name.rsplit("-", 3)
    killed, running, elsewhere = f"{host}-999999999", f"{host}-{os.getpid()}", "0-999999999"
    for process in (killed, running, elsewhere):
        (tmp_path / f".new.tmp-{process}-{unique}").mkdir()
    write_folder_atomically(tmp_path / "new", asides.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f".new.tmp-{running}-{unique}", f".new.tmp-{elsewhere}-{unique}", "new"]
    )


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "", "a//b", "C:x", "a\\b", None, "a\0b"])
def test_paths_that_leave_the_folder_are_refused(name):
    with as_in_production(), pytest.raises(CheckpointError, match="must stay inside its folder"):
        safe_name(name, "config.json")
    assert safe_name("a/b.c", "config.json") == "a/b.c"


@pytest.mark.parametrize("mapped", [False, True])
def test_tensors_are_read_as_safetensors_reads_them(tmp_path, monkeypatch, mapped):
    from hfsae.formats import safetensors_io

    monkeypatch.setattr(safetensors_io, "_MAPPED_FROM", 0 if mapped else 2**40)
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool]
    tensors = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds} | {"empty": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "a.safetensors", {"made": "here"})
    read = read_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in tensors)
    assert read_header(tmp_path / "a.safetensors")[1] == {"made": "here"}
    read["torch.float32"].add_(1)  # ours to change, never the file's
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["torch.float32"], tensors["torch.float32"])


@contextmanager
def _quickly() -> Iterator[None]:
    """Within a second of this thread's time, as a user has it: without the checks of annotations."""
    start = time.thread_time()
    with as_in_production():
        yield
    assert time.thread_time() - start < 1
