import json
import threading

import pytest
import torch
from hub_stand_in import running_hub
from safetensors.torch import load_file, save, save_file

from hfsae import FeatureIndex, attach, hub
from hfsae.default import load_default, load_index
from hfsae.dictionary import SAE
from hfsae.errors import CheckpointError, CheckpointNotFound, HfsaeWarning, HubError, InvalidValue
from hfsae.formats import native
from hfsae.hub import cache
from hfsae.hub.publishing import Plan
from hfsae.sae.config import SAEConfig
from hfsae.sae.statistics import Label

TOKEN = "hf_good"


@pytest.fixture
def loopback(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HFSAE_HUB_TIMEOUT", "5")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with running_hub() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        yield stand_in


def write_dictionary(folder, layer=8, seed=0, **evaluation):
    """A folder such as `save_pretrained` writes, as far as the Hub cares."""
    folder.mkdir(parents=True)
    config = {"architecture": "topk", "d_in": 6, "d_sae": 10, "k": 2, "site": "resid_post", "layer": layer}
    config |= {"base_model": "me/base", "base_revision": "abc123", "format_version": 1}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    save_file({"W_enc": torch.randn(10, 6, generator=generator)}, folder / "sae.safetensors")
    measured = {
        "ce_clean": 3.25,
        "ce_spliced": 3.5,
        "recovered_zero": 0.953125,
        "l0": 2.0,
        "data": "stdlib",
    } | evaluation
    (folder / "eval.json").write_text(json.dumps(measured))
    return folder


def gemma_files():
    return {
        "README.md": b"# a card",
        ".env": b"SECRET=1",
        **{f"layer_{n}/width_16k/average_l0_{l0}/params.npz": b"%d" % (n * l0) for n in (0, 5, 12) for l0 in (40, 80)},
    }


class TestFetch:
    def test_downloads_only_the_files_of_the_chosen_dictionary(self, loopback):
        loopback.add("google/scope", gemma_files())
        path = hub.fetch("google/scope", subfolder="layer_5/width_16k/average_l0_40")
        assert (path / "params.npz").read_bytes() == b"200"
        assert loopback.seen("GET", "/resolve/") == 1

    def test_lists_what_fits_when_the_request_is_ambiguous(self, loopback):
        loopback.add("google/scope", gemma_files())
        with pytest.raises(
            InvalidValue, match=r"holds 2 dictionaries that fit \(layer=5\).*'layer_5/width_16k/average_l0_80'"
        ):
            hub.fetch("google/scope", layer=5)

    def test_lists_what_there_is_when_nothing_fits(self, loopback):
        loopback.add("google/scope", gemma_files())
        with pytest.raises(CheckpointNotFound, match=r"no dictionary for layer=7. It holds 'layer_0/"):
            hub.fetch("google/scope", layer=7)

    def test_returns_the_file_where_a_dictionary_is_one_file(self, loopback):
        loopback.add("qwen/scope", {f"layer{n}.sae.pt": b"%d" % n for n in range(12)})
        assert hub.fetch("qwen/scope", layer=11).read_bytes() == b"11"

    def test_second_fetch_downloads_nothing(self, loopback):
        loopback.add("google/scope", gemma_files())
        wanted = "layer_5/width_16k/average_l0_40"
        first = hub.fetch("google/scope", subfolder=wanted)
        assert hub.fetch("google/scope", subfolder=wanted) == first
        assert loopback.seen("GET", "/resolve/") == 1

    def test_force_download_downloads_again(self, loopback):
        loopback.add("google/scope", gemma_files())
        for _ in range(2):
            hub.fetch("google/scope", subfolder="layer_5/width_16k/average_l0_40", force_download=True)
        assert loopback.seen("GET", "/resolve/") == 2

    def test_large_files_are_checked_against_their_sha256(self, loopback):
        loopback.lfs_above = 3
        loopback.add("me/sae", {"sae.safetensors": b"weights", "config.json": b"{}"})
        path = hub.fetch("me/sae")
        assert cache._hashes(path / "sae.safetensors", 7, cache.FileFacts(7, "x", None))[0]
        blob = (path / "sae.safetensors").resolve()
        blob.chmod(0o644)
        blob.write_bytes(b"wEights")
        with pytest.raises(CheckpointError, match=r"'sae.safetensors' has the hash .* force_download=True"):
            hub.fetch("me/sae")
        assert hub.fetch("me/sae", force_download=True) == path

    def test_a_cut_file_in_the_cache_is_noticed(self, loopback):
        loopback.add("me/sae", {"sae.safetensors": b"weights", "config.json": b"{}"})
        blob = (hub.fetch("me/sae") / "sae.safetensors").resolve()
        blob.write_bytes(b"wei")
        with pytest.raises(CheckpointError, match=r"has 3 bytes. The Hub lists 7"):
            hub.fetch("me/sae", local_files_only=True)

    def test_private_repository_opens_with_the_token_alone(self, loopback):
        loopback.add("me/secret", {"sae.safetensors": b"x", "config.json": b"{}"}, private=True)
        with pytest.raises(HubError, match=r"refused the credentials for 'me/secret' \(401\)"):
            hub.fetch("me/secret")
        assert (hub.fetch("me/secret", token=TOKEN) / "sae.safetensors").read_bytes() == b"x"

    def test_repository_of_one_dictionary_at_its_root_fits_any_layer(self, loopback):
        loopback.add("me/sae", {"sae.safetensors": b"x", "config.json": b"{}"})
        assert (hub.fetch("me/sae", layer=3) / "config.json").is_file()

    def test_file_names_that_leave_the_repository_are_ignored(self, loopback):
        loopback.add("me/evil", {"../../sae.safetensors": b"x", "README.md": b""})
        with pytest.raises(CheckpointNotFound, match="holds no dictionary"):
            hub.fetch("me/evil")


class TestOffline:
    def test_whole_copy_in_the_cache_serves(self, loopback):
        loopback.add("google/scope", gemma_files())
        wanted = "layer_0/width_16k/average_l0_40"
        path = hub.fetch("google/scope", subfolder=wanted)
        before = len(loopback.requests)
        assert hub.fetch("google/scope", subfolder=wanted, local_files_only=True) == path
        assert len(loopback.requests) == before

    def test_partial_copy_names_the_missing_file(self, loopback):
        loopback.add("me/sae", {"a/sae.safetensors": b"x", "a/config.json": b"{}"})
        path = hub.fetch("me/sae")
        (path / "sae.safetensors").unlink()
        with pytest.raises(CheckpointNotFound, match=r"in part: 'a/sae.safetensors' of 'a' is missing"):
            hub.fetch("me/sae", local_files_only=True)

    def test_nothing_in_the_cache_says_so(self, loopback):
        with pytest.raises(CheckpointNotFound, match="Nothing of 'me/sae' is in the cache"):
            hub.fetch("me/sae", local_files_only=True)

    def test_unreachable_hub_falls_back_on_the_cache_with_a_warning(self, loopback, monkeypatch):
        loopback.add("me/sae", {"sae.safetensors": b"x", "config.json": b"{}"})
        path = hub.fetch("me/sae")
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.warns(HfsaeWarning, match="could not be reached for 'me/sae'.*The copy in the cache is used"):
            assert hub.fetch("me/sae") == path


class TestErrors:
    def test_repository_that_does_not_exist(self, loopback):
        with pytest.raises(CheckpointNotFound, match=r"'me/none' is not on the Hub, or is private \(404\)"):
            hub.fetch("me/none", token=TOKEN)

    def test_revision_that_does_not_exist(self, loopback):
        loopback.add("me/sae", {"sae.safetensors": b"x"})
        with pytest.raises(CheckpointNotFound, match=r"'me/sae' has no revision 'v9' \(404\)"):
            hub.fetch("me/sae", revision="v9")

    def test_file_that_vanished_meanwhile(self, loopback):
        loopback.add("me/sae", {"sae.safetensors": b"x"})
        loopback.fail("HEAD", "/resolve/", status=404, headers={"X-Error-Code": "EntryNotFound"})
        with pytest.raises(CheckpointNotFound, match="A file is missing in 'me/sae'"):
            hub.fetch("me/sae")

    def test_gated_repository(self, loopback):
        loopback.add("me/gated", {"sae.safetensors": b"x"}, gated=True)
        with pytest.raises(HubError, match=r"'me/gated' is gated \(403\)"):
            hub.fetch("me/gated")

    def test_wrong_token_is_refused_and_never_shown(self, loopback):
        loopback.add("me/sae", {"sae.safetensors": b"x"})
        with pytest.raises(HubError, match=r"refused the credentials for 'me/sae' \(401\)") as caught:
            hub.fetch("me/sae", token="hf_supersecret")
        assert "supersecret" not in _all_text(caught.value)

    @pytest.mark.parametrize("stage", ["/api/models", "/resolve/"])
    @pytest.mark.parametrize(
        ("status", "headers", "message"),
        [
            (403, {}, r"Access to 'me/sae' is forbidden \(403\)"),
            (409, {}, r"'me/sae' is busy with another change \(409\)"),
            (418, {}, r"The Hub answered 418 about 'me/sae'"),
            (429, {"Retry-After": "77"}, r"limits how often 'me/sae' is asked for \(429\).*wait 77 s"),
            (500, {}, r"The Hub failed at 'me/sae' \(500\)"),
        ],
    )
    def test_status_has_its_own_message(self, loopback, stage, status, headers, message, monkeypatch):
        monkeypatch.setenv("HFSAE_HUB_TIMEOUT", "4")
        monkeypatch.setattr("time.sleep", lambda _seconds: None)
        loopback.add("me/sae", {"sae.safetensors": b"x"})
        for method in ("GET", "HEAD"):
            loopback.fail(method, stage, status=status, headers=headers)
        with pytest.raises(HubError, match=message):
            hub.fetch("me/sae")

    def test_overloaded_hub_is_asked_again(self, loopback):
        loopback.add("me/sae", {"sae.safetensors": b"x"})
        loopback.fail("GET", "/api/models", status=503, headers={"Retry-After": "0"}, times=2)
        assert (hub.fetch("me/sae") / "sae.safetensors").read_bytes() == b"x"

    def test_dropped_connection_is_tried_again_then_named(self, loopback):
        loopback.add("me/sae", {"sae.safetensors": b"x"})
        loopback.fail("GET", "/api/models", action="drop", times=1)
        assert (hub.fetch("me/sae") / "sae.safetensors").read_bytes() == b"x"
        loopback.fail("GET", "/api/models", action="drop")
        with pytest.raises(HubError, match="could not be reached for 'me/sae': it dropped the connection"):
            hub.fetch("me/sae", cache_dir="/nonexistent/cache")

    def test_stalled_hub_is_given_up_at_the_deadline(self, loopback, monkeypatch):
        monkeypatch.setenv("HFSAE_HUB_TIMEOUT", "0.5")
        loopback.fail("GET", "/api/models", action="stall")
        with pytest.raises(HubError, match=r"did not answer about 'me/sae' in time. It has 0 s"):
            hub.fetch("me/sae")

    def test_nothing_answers(self, loopback, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(HubError, match=r"nothing answers there. Check the network"):
            hub.fetch("me/sae")

    def test_name_that_does_not_resolve(self, loopback, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
        with pytest.raises(HubError, match="its name does not resolve"):
            hub.fetch("me/sae")

    @pytest.mark.parametrize("repo_id", ["", "a/b/c", "a//b", "../x", "a b", "x" * 100, "é/è"])
    def test_impossible_repository_id(self, repo_id):
        with pytest.raises(InvalidValue, match="cannot be a repository id"):
            hub.fetch(repo_id)

    @pytest.mark.parametrize("revision", ["", "../../x", "/etc"])
    def test_impossible_revision(self, revision):
        with pytest.raises(InvalidValue, match="cannot be a revision"):
            hub.fetch("me/sae", revision=revision)


class TestPush:
    def test_push_then_fetch_gives_the_same_files(self, loopback, tmp_path):
        folder = write_dictionary(tmp_path / "saved")
        info = hub.push(folder, "me/sae", token=TOKEN)
        assert info.oid == loopback.repos["me/sae"].branches["main"]
        path = hub.fetch("me/sae", layer=8)
        assert path.name == "resid_post.layer_8"
        for name in ("config.json", "sae.safetensors", "eval.json"):
            assert (path / name).read_bytes() == (folder / name).read_bytes()
        assert torch.equal(*(load_file(p / "sae.safetensors")["W_enc"] for p in (path, folder)))

    def test_set_goes_in_one_commit_and_the_index_names_every_file(self, loopback, tmp_path):
        for layer in (1, 2):
            write_dictionary(tmp_path / "set" / f"any_{layer}", layer=layer, seed=layer)
        hub.push(tmp_path / "set", "me/set", token=TOKEN)
        assert loopback.seen("POST", "/commit/") == 1
        index = json.loads(loopback.repos["me/set"].head["config.json"])
        assert set(index["dictionaries"]) == {"resid_post.layer_1", "resid_post.layer_2"}
        listed = index["dictionaries"]["resid_post.layer_1"]["files"]
        assert set(listed) == {"config.json", "sae.safetensors", "eval.json"}

    def test_nothing_else_in_the_folder_leaves_the_machine(self, loopback, tmp_path):
        folder = write_dictionary(tmp_path / "saved")
        (folder / ".env").write_text("SECRET=1")
        (folder / "notes.txt").write_text("private")
        hub.push(folder, "me/sae", token=TOKEN)
        names = {name.rsplit("/", 1)[-1] for name in loopback.repos["me/sae"].head}
        assert names == {".gitattributes", "config.json", "README.md", "sae.safetensors", "eval.json"}

    def test_link_is_refused(self, loopback, tmp_path):
        folder = write_dictionary(tmp_path / "saved")
        (folder / "stats.safetensors").symlink_to("/etc/passwd")
        with pytest.raises(InvalidValue, match=r"is a link. Only files are published"):
            hub.push(folder, "me/sae", token=TOKEN)
        assert loopback.requests == []

    def test_second_push_keeps_other_dictionaries_and_hand_written_text(self, loopback, tmp_path):
        hub.push(write_dictionary(tmp_path / "a", layer=1), "me/sae", token=TOKEN)
        repo = loopback.repos["me/sae"]
        card = repo.head["README.md"].decode() + "\nWritten by hand.\n"
        repo.commit(repo.head | {"README.md": card.encode()})
        hub.push(write_dictionary(tmp_path / "b", layer=2, ce_spliced=4.125), "me/sae", token=TOKEN)
        after = repo.head["README.md"].decode()
        assert "Written by hand." in after
        assert "resid_post.layer_1" in after
        assert "4.125" in after
        assert set(json.loads(repo.head["config.json"])["dictionaries"]) == {"resid_post.layer_1", "resid_post.layer_2"}

    def test_same_push_twice_gives_the_same_card(self, loopback, tmp_path):
        folder = write_dictionary(tmp_path / "a")
        hub.push(folder, "me/sae", token=TOKEN)
        first = loopback.repos["me/sae"].head["README.md"]
        hub.push(folder, "me/sae", token=TOKEN)
        assert loopback.repos["me/sae"].head["README.md"] == first

    def test_dry_run_shows_card_and_files_and_sends_nothing(self, loopback, tmp_path):
        plan = hub.push(write_dictionary(tmp_path / "a"), "me/sae", token=TOKEN, dry_run=True)
        assert isinstance(plan, Plan)
        assert "resid_post.layer_8/sae.safetensors" in str(plan)
        assert "# sae" in str(plan)
        assert all(method == "GET" for method, _ in loopback.requests)

    def test_dry_run_needs_no_network(self, loopback, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert "config.json" in str(hub.push(write_dictionary(tmp_path / "a"), "me/sae", dry_run=True))

    def test_create_pr_leaves_main_alone(self, loopback, tmp_path):
        hub.push(write_dictionary(tmp_path / "a", layer=1), "me/sae", token=TOKEN)
        before = loopback.repos["me/sae"].head
        info = hub.push(write_dictionary(tmp_path / "b", layer=2), "me/sae", token=TOKEN, create_pr=True)
        assert info.pr_url.endswith("/discussions/1")
        assert loopback.repos["me/sae"].head == before
        assert hub.fetch("me/sae", layer=2, revision="refs/pr/1").name == "resid_post.layer_2"

    def test_private_and_revision_are_passed_on(self, loopback, tmp_path):
        hub.push(write_dictionary(tmp_path / "a"), "me/sae", token=TOKEN, private=True, revision="v2")
        repo = loopback.repos["me/sae"]
        assert repo.private
        assert "config.json" not in repo.head
        assert "config.json" in repo.commits[repo.branches["v2"]]

    @pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")  # huggingface_hub 2.4 with httpx2
    def test_large_files_go_where_the_hub_wants_them(self, loopback, tmp_path):
        loopback.lfs_above = 100
        folder = write_dictionary(tmp_path / "a")
        hub.push(folder, "me/sae", token=TOKEN)
        assert loopback.seen("PUT", "/lfs/") >= 1
        assert (hub.fetch("me/sae") / "sae.safetensors").read_bytes() == (folder / "sae.safetensors").read_bytes()

    @pytest.mark.parametrize(
        ("stage", "fault", "message"),
        [
            ("/commit/", {"status": 500}, r"The Hub failed at 'me/sae' \(500\)"),
            ("/commit/", {"status": 409}, "busy with another change"),
            ("/commit/", {"status": 412}, "changed during the push"),
            ("/commit/", {"action": "drop"}, "it dropped the connection"),
            ("/preupload/", {"status": 403}, "forbidden"),
            ("/repos/create", {"status": 429, "headers": {"Retry-After": "9"}}, "limits how often.*wait 9 s"),
        ],
    )
    def test_interrupted_push_leaves_the_repository_as_it_was(self, loopback, tmp_path, stage, fault, message):
        hub.push(write_dictionary(tmp_path / "a", layer=1), "me/sae", token=TOKEN)
        before = dict(loopback.repos["me/sae"].head)
        loopback.fail("POST", stage, **fault)
        with pytest.raises(HubError, match=message):
            hub.push(write_dictionary(tmp_path / "b", layer=2), "me/sae", token=TOKEN)
        assert loopback.repos["me/sae"].head == before

    def test_push_that_was_overtaken_is_refused(self, loopback, tmp_path, monkeypatch):
        hub.push(write_dictionary(tmp_path / "a", layer=1), "me/sae", token=TOKEN)
        repo = loopback.repos["me/sae"]
        present = hub._present

        def overtaken(*args, **kwargs):
            seen = present(*args, **kwargs)
            repo.commit(repo.head | {"other.txt": b"x"})
            return seen

        monkeypatch.setattr(hub, "_present", overtaken)
        with pytest.raises(HubError, match="changed during the push"):
            hub.push(write_dictionary(tmp_path / "b", layer=2), "me/sae", token=TOKEN)
        assert "other.txt" in repo.head

    def test_push_without_token_is_refused_in_words(self, loopback, tmp_path):
        with pytest.raises(HubError, match=r"refused the credentials for 'me/sae' \(401\)"):
            hub.push(write_dictionary(tmp_path / "a"), "me/sae")

    def test_repository_of_something_else_is_left_alone(self, loopback, tmp_path):
        loopback.add("me/model", {"config.json": b'{"model_type": "gpt2"}'})
        with pytest.raises(InvalidValue, match=r"holds a config.json of something else"):
            hub.push(write_dictionary(tmp_path / "a"), "me/model", token=TOKEN)

    def test_two_dictionaries_of_one_place_are_refused(self, tmp_path):
        folders = [write_dictionary(tmp_path / name) for name in "ab"]
        with pytest.raises(InvalidValue, match=r"are both of 'resid_post.layer_8'"):
            hub.push(folders, "me/sae")

    def test_folder_without_a_dictionary_is_refused(self, tmp_path):
        with pytest.raises(CheckpointNotFound, match="holds no saved dictionary"):
            hub.push(tmp_path, "me/sae")

    def test_config_that_is_no_json_is_named(self, tmp_path):
        folder = write_dictionary(tmp_path / "a")
        (folder / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match="is no valid JSON"):
            hub.push(folder, "me/sae")


def test_two_threads_fetch_the_same_dictionary(loopback):
    loopback.add("me/sae", {"sae.safetensors": save({"W": torch.ones(4)}), "config.json": b"{}"})
    found = []
    threads = [threading.Thread(target=lambda: found.append(hub.fetch("me/sae"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


class Written:
    """What is published beside a dictionary; here one file of a few bytes."""

    def __init__(self, name, content):
        self.name, self.content = name, content

    def save(self, folder):
        folder.mkdir(exist_ok=True)
        (folder / self.name).write_text(self.content)

    def examples(self):
        return [{"feature": 5, "density": 0.25, "context": "a «b» c", "label": "the letter b", "source": "hand"}]


def test_evaluation_and_index_are_published_with_the_dictionary_and_fetched_on_request(loopback):
    sae = SAE(SAEConfig(architecture="jumprelu", d_in=6, d_sae=20, site="resid_post", layer=3, base_model="me/base"))
    measured, index = Written("eval.json", '{"fvu": 0.125, "l0": 7.5}'), Written("index.json", '{"tokens": 9}')
    sae.push_to_hub("me/sae", token=TOKEN, evaluation=measured, index=index)
    card = loopback.repos["me/sae"].head["README.md"].decode()
    assert "value: 0.125" in card
    assert "| 7.5 |" in card
    assert "| 5 | 0.25 | a «b» c |" in card
    assert "the letter b (hand)" in card
    plain = hub.fetch("me/sae", layer=3)
    assert not (plain / "index").exists()
    folder = hub.fetch("me/sae", layer=3, beside=native.FEATURE_INDEX_FILES)
    assert (folder / "index" / "index.json").read_text() == '{"tokens": 9}'
    assert folder == hub.fetch("me/sae", layer=3, local_files_only=True, beside=native.FEATURE_INDEX_FILES)


def test_published_index_is_read_from_the_hub(loopback):
    model, _ = load_default()
    sae, index = attach(model, layer=2).dictionary, load_index()
    sae.push_to_hub("me/sae", token=TOKEN, index=index)
    assert FeatureIndex.load("me/sae", layer=2)[3707].top == index[3707].top
    attach(model, layer=1).dictionary.push_to_hub("me/sae", token=TOKEN)
    with pytest.raises(CheckpointNotFound, match=r"'me/sae' holds no feature index of 'resid_post.layer_1'"):
        FeatureIndex.load("me/sae", layer=1)


def test_saving_the_same_weights_again_keeps_what_was_measured_of_them(tmp_path):
    sae = SAE(SAEConfig(architecture="topk", k=2, d_in=6, d_sae=20, site="resid_post", layer=3))
    folder = sae.save_pretrained(tmp_path)
    Written("eval.json", "{}").save(folder)
    Written("index.json", "{}").save(folder / "index")
    sae.labels[3] = Label("a label", "hand")
    assert sorted(path.name for path in sae.save_pretrained(tmp_path).rglob("*.json")) == [
        "config.json", "eval.json", "index.json", "labels.json"]  # fmt: skip
    with torch.no_grad():
        sae.W_dec.mul_(2.0)
    assert sorted(path.name for path in sae.save_pretrained(tmp_path).rglob("*.json")) == ["config.json", "labels.json"]


def _all_text(error):
    text = ""
    while error is not None:
        text += f"{error!r}{error}"
        error = error.__cause__
    return text


def test_pushed_dictionary_comes_back_the_same(loopback, tmp_path):
    sae = SAE(SAEConfig(architecture="jumprelu", d_in=6, d_sae=20, site="resid_post", layer=3, base_model="me/base"))
    sae.push_to_hub("me/sae", token=TOKEN, license="apache-2.0")
    again = SAE.from_pretrained("me/sae", layer=3)
    assert again.config == sae.config
    for name, parameter in sae.named_parameters():
        assert torch.equal(getattr(again, name), parameter), name
    rows = SAE.from_pretrained("me/sae", layer=3, features=[4, 9])
    assert torch.equal(rows.W_dec, sae.W_dec[[4, 9]])
    assert b"license: apache-2.0" in loopback.repos["me/sae"].head["README.md"]
