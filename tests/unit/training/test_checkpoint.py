import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kits_dist.models import weights as model_weights
from kits_dist.training import checkpoint
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed, MissingInput


def trained(kind=torch.optim.Adam, steps=3, **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = kind(model.parameters(), lr=0.1, **more)
    advance(model, optimizer, steps)
    return model, optimizer


def advance(model, optimizer, steps):
    for k in range(steps):
        torch.manual_seed(k)
        model(torch.randn(2, 3, 5, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def save(root, step, model, optimizer, state, *, best, keep):
    checkpoint.save(root, checkpoint.contents_of(step, model, optimizer, state, best=best), keep=keep)


@pytest.mark.parametrize(
    ("kind", "more"),
    [(torch.optim.Adam, {}), (torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.SGD, {})],
)
def test_training_after_a_restore_is_bit_equal(tmp_path, kind, more):
    model, optimizer = trained(kind, **more)
    save(tmp_path, 3, model, optimizer, {"position": 30}, best=True, keep=2)
    advance(model, optimizer, 3)
    found, damaged = checkpoint.find(tmp_path)
    assert (found.state, damaged) == ({"position": 30}, [])
    again, other = trained(kind, steps=1, **more)
    checkpoint.restore(found, again, other)
    for group in other.state.values():
        for value in group.values():
            if isinstance(value, torch.Tensor) and value.ndim == 4:
                assert value.is_contiguous(memory_format=torch.channels_last)  # as the parameter is
    advance(again, other, 3)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_averaged_weights_are_restored_as_they_were_saved(tmp_path):
    """Not from the plain weights, from which averaging would begin again."""
    model, optimizer = trained()
    average, _ = trained(steps=1)
    contents = checkpoint.contents_of(3, model, optimizer, {}, best=True, average=average)
    checkpoint.save(tmp_path, contents, keep=1)
    again, other = trained(steps=2)
    restored, _ = trained(steps=2)
    checkpoint.restore(checkpoint.find(tmp_path)[0], again, other, restored)
    for expected, found in ((model, again), (average, restored)):
        assert all(torch.equal(value, found.state_dict()[key]) for key, value in expected.state_dict().items())
    assert not torch.equal(model[0].weight, average[0].weight)


def test_keeps_the_newest_and_the_best(tmp_path):
    model, optimizer = trained()
    for step in range(6):
        save(tmp_path, step, model, optimizer, {}, best=step == 1, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best",
        "last",
        "step_00000001",
        "step_00000004",
        "step_00000005",
    ]
    assert (tmp_path / "last").resolve().name == "step_00000005" and (
        tmp_path / "best"
    ).resolve().name == "step_00000001"
    content = {p.suffix for p in (tmp_path / "last").iterdir()}
    assert content == {".safetensors", ".json", ""}  # nothing that can run code


def test_damaged_checkpoints_do_not_count_among_those_kept(tmp_path):
    model, optimizer = trained()
    for step in (2, 4, 6, 8):
        save(tmp_path, step, model, optimizer, {"position": step}, best=False, keep=2)
    (tmp_path / "step_00000008" / "state.json").write_text("cut")
    (tmp_path / "step_00000006.mine").mkdir()
    for _ in range(2):
        found, _ = checkpoint.find(tmp_path)
        assert found.state == {"position": 6}
        checkpoint.set_aside(tmp_path, found)
        shutil.copytree(tmp_path / "refused_step_00000008", tmp_path / "step_00000008")
    checkpoint.set_aside(tmp_path, found)
    save(tmp_path, 7, model, optimizer, {}, best=False, keep=2)  # goes on from there
    assert [path.name for path in checkpoint._steps(tmp_path)] == ["step_00000007", "step_00000006"]
    kept = {"refused_step_00000008", "refused_step_00000008_2", "refused_step_00000008_3", "step_00000006.mine"}
    assert {path.name for path in tmp_path.iterdir()} == kept | {"step_00000007", "step_00000006", "last"}


def test_a_disk_that_does_not_answer_is_not_damage(tmp_path, monkeypatch):
    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer, {}, best=False, keep=1)
    monkeypatch.setattr(checkpoint.files, "sha256", stale)
    with pytest.raises(JobFailed, match="step_00000001 cannot be read now .*Stale file handle.*Nothing was changed"):
        checkpoint.find(tmp_path)


def test_links_missing_after_a_kill_are_restored(tmp_path, monkeypatch):
    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer, {}, best=True, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2, model, optimizer, {}, best=True, keep=1)
    found, _ = checkpoint.find(tmp_path)
    assert found.best and (tmp_path / "best").resolve().name == "step_00000001"
    checkpoint.link(tmp_path, found.folder)
    assert all((tmp_path / name).resolve() == found.folder.resolve() for name in ("last", "best"))
    save(tmp_path, 3, model, optimizer, {}, best=False, keep=1)
    assert (tmp_path / "best").resolve().name == "step_00000002" and not checkpoint.find(tmp_path)[0].best


def interrupted(beside, path):
    if path.name == "best":
        raise KeyboardInterrupt
    os.rename(beside, path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_is_skipped_and_reported(tmp_path, name, damage):
    model, optimizer = trained()
    for step in (1, 2):
        save(tmp_path, step, model, optimizer, {"position": step}, best=False, keep=2)
    path = tmp_path / "step_00000002" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
    found, said = checkpoint.find(tmp_path)
    assert found.state == {"position": 1}
    assert len(said) == 1 and "step_00000002" in said[0]


def test_a_changed_digit_of_the_state_is_damage(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer, {"position": 12}, best=False, keep=1)
    path = tmp_path / "last" / "state.json"
    path.write_text(path.read_text().replace("12", "13"))
    assert checkpoint.find(tmp_path)[0] is None and checkpoint.at(tmp_path / "last") is None


@pytest.mark.parametrize("left", [[], ["model.safetensors"]])
def test_a_checkpoint_that_does_not_name_all_its_files_is_skipped(tmp_path, left):
    """What is named has the sha256 that is named, but it is not all that a checkpoint has."""
    model, optimizer = trained()
    for step in (1, 2):
        save(tmp_path, step, model, optimizer, {"position": step}, best=False, keep=2)
    path = tmp_path / "step_00000002" / "SHA256SUMS"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if line.split()[1] in left))
    found, said = checkpoint.find(tmp_path)
    assert found.state == {"position": 1}
    assert len(said) == 1 and "step_00000002 is not a complete checkpoint (no sha256 of " in said[0]


def test_a_checkpoint_of_another_run_is_skipped(tmp_path):
    model, optimizer = trained()
    for step, run in ((1, {"run": "ours"}), (2, {}), (3, {"run": "theirs"})):
        save(tmp_path, step, model, optimizer, run, best=False, keep=3)
    found, said = checkpoint.find(tmp_path, "ours")
    assert found.folder.name == "step_00000002"  # older checkpoints do not say whose they are
    assert said == [f"{tmp_path / 'step_00000003'} is another run's."]
    assert checkpoint.at(tmp_path / "last", "ours") is None
    for run in ("theirs", ""):
        assert checkpoint.find(tmp_path, run)[0].folder.name == "step_00000003"


def test_none_found(tmp_path):
    assert checkpoint.find(tmp_path) == (None, [])


def test_weights_of_another_model_are_refused(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer, {}, best=False, keep=1)
    found, other = checkpoint.find(tmp_path)[0], nn.Conv2d(3, 4, 3)
    with pytest.raises(InputError, match="weights of another model"):
        checkpoint.restore(found, other, torch.optim.Adam(other.parameters()))
    groups = [{"params": [p]} for p in model.parameters()]
    with pytest.raises(InputError, match="of another optimizer"):
        checkpoint.restore(found, model, torch.optim.Adam(groups))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_in_its_place_is_refused_and_never_run(tmp_path, capsys):
    """Even one whose sha256 was written into SHA256SUMS."""
    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer, {}, best=False, keep=1)
    path, sums = tmp_path / "last" / "model.safetensors", tmp_path / "last" / "SHA256SUMS"
    before = files.sha256(path)
    path.write_bytes(pickle.dumps(Evil()))
    sums.write_text(sums.read_text().replace(before, files.sha256(path)))
    with pytest.raises(InputError, match=r"model.safetensors: not a safetensors file"):
        checkpoint.restore(checkpoint.find(tmp_path)[0], model, optimizer)
    with pytest.raises(InputError, match="not a safetensors file"):
        model_weights.read_export(path)
    assert "code ran" not in capsys.readouterr().out


def test_exported_weights_say_what_they_expect(tmp_path):
    model, _ = trained()
    model_weights.export(tmp_path / "model.safetensors", model.state_dict(), {"window_hu": [0, 200]})
    weights, about = model_weights.read_export(tmp_path / "model.safetensors")
    assert about == {"window_hu": [0, 200]} and torch.equal(weights["0.weight"], model[0].weight)
    with pytest.raises(MissingInput, match="written at a run's first validation"):
        model_weights.read_export(tmp_path / "nowhere.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(json.dumps({}).encode())
    with pytest.raises(InputError, match="not a safetensors file"):
        model_weights.read_export(tmp_path / "bad.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not weights exported by kits_dist"):
        model_weights.read_export(tmp_path / "other.safetensors")


def without_links(monkeypatch, number: int) -> None:
    def symlink_to(path, target):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "symlink_to", symlink_to)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS])
def test_on_a_disk_without_links_files_hold_the_names(tmp_path, monkeypatch, number):
    without_links(monkeypatch, number)
    model, optimizer = trained()
    for step in (1, 2, 3, 4):
        save(tmp_path, step, model, optimizer, {}, best=step == 1, keep=2)
    steps = {"step_00000001", "step_00000003", "step_00000004"}  # the best is kept
    assert {path.name for path in tmp_path.iterdir()} == steps | {"last", "best"}
    assert (tmp_path / "last").read_text() == "step_00000004\n"
    assert (tmp_path / "best").read_text() == "step_00000001\n"
    found, refused = checkpoint.find(tmp_path)
    assert found.folder.name == "step_00000004" and not refused
    assert checkpoint.best_folder(tmp_path).name == "step_00000001"


@pytest.mark.parametrize("links", ["followed", "left out", "as files"])
def test_a_copy_goes_on_whatever_the_copy_tool_did_to_links(tmp_path, links):
    model, optimizer = trained()
    for step in (1, 2):
        save(tmp_path / "a", step, model, optimizer, {}, best=step == 1, keep=1)
    copy = shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name in ("last", "best"):
        if links != "followed":
            shutil.rmtree(copy / name)
        if links == "as files":
            (copy / name).write_text("step_00000001")
    assert checkpoint.find(copy)[0].folder.name == "step_00000002"
    save(copy, 3, model, optimizer, {}, best=False, keep=1)
    assert {path.name for path in copy.iterdir()} == {"step_00000001", "step_00000003", "last", "best"}
    assert (copy / "last").resolve().name == "step_00000003" and (copy / "best").resolve().name == "step_00000001"


def test_a_folder_that_is_the_only_copy_is_not_deleted(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 1, model, optimizer, {"position": 1}, best=False, keep=1)
    (tmp_path / "last").unlink()
    (tmp_path / "step_00000001").rename(tmp_path / "last")
    save(tmp_path, 2, model, optimizer, {}, best=False, keep=1)
    assert (tmp_path / "last").is_symlink() and (tmp_path / "refused_last" / "model.safetensors").is_file()


def test_weights_are_read_from_a_path_that_is_not_utf8(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller"))
    folder.mkdir()
    model_weights.export(folder / "model.safetensors", {"a": torch.arange(3)}, {"step": 7})
    weights, about = model_weights.read_export(folder / "model.safetensors")
    assert weights["a"].tolist() == [0, 1, 2] and about == {"step": 7}


def test_weights_are_read_from_a_disk_that_cannot_map_files(tmp_path, monkeypatch):
    def load_file(path):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    model_weights.write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(3)})
    monkeypatch.setattr(model_weights, "load_file", load_file)
    assert model_weights.read_tensors(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]
