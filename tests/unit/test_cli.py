import errno
import os
from dataclasses import dataclass

import pytest

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.config import Config
from kits_dist.utils.errors import InputError, JobFailed, MissingInput, Preempted
from tests.helpers import ROOT

NEEDED = ["run=r", "data.store=s"]


def test_arguments_beat_yaml_beats_defaults(tmp_path):
    yaml = tmp_path / "a.yaml"
    yaml.write_text("optim: {lr: 0.5, epochs: 7}\n")
    config = cli.load(Config, [*NEEDED, "optim.lr=0.25", f"config={yaml}"])
    assert (config.optim.lr, config.optim.epochs, config.optim.patience) == (0.25, 7, 10)


def test_a_list_of_one_needs_no_brackets():
    assert cli.load(Config, [*NEEDED, "model.regions=tumor"]).model.regions == ("tumor",)
    config = cli.load(Config, [*NEEDED, "model.regions=[kidney_and_mass, tumor]"])
    assert config.model.regions == ("kidney_and_mass", "tumor")


def test_none_is_no_value_where_a_key_is_optional():
    config = cli.load(Config, [*NEEDED, "data.pixel_mm=none", "optim.pos_weight=none", "model.encoder_weights=none"])
    assert (config.data.pixel_mm, config.optim.pos_weight, config.model.encoder_weights) == (None, None, "none")


def test_sizes_may_be_written_with_x_and_names_may_look_like_numbers():
    config = cli.load(Config, ["run=1e3", "data.store=5", "data.size_px=96x128"])
    assert (config.run, config.data.store, config.data.size_px) == ("1e3", "5", (96, 128))


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("optim.lrr=1", "'lrr' not in 'OptimConfig'. Did you mean: 'lr'"),
        ("optim.lr=fast", "optim.lr=fast: Value 'fast'"),
        ("--lr=1e-3", "Write optim.lr=1e-3"),
        ("loose", "Arguments are key=value"),
        ("data.backend=torch", "expected one of ['auto', 'dali', 'opencv', 'fixed']"),
        ("data.size_px=[100,100]", "multiple of 32"),
        ("config=nowhere.yaml", "config=nowhere.yaml: no such file"),
        ("model.regions=[tumor,mass]", "in this order"),
        ("augment.flip=2", "augment.flip=2.0 is a probability"),
        ("augment.noise_min_hu=16", "augment.noise_min_hu=16.0: use 0 .. augment.noise_hu=15.0"),
        ("optim.pos_weight=[1,2]", "give one each"),
        ("data.fold=best", "use a fold number from 0, or all"),
        ("optim.lr=[", "cannot read the value"),
        ("optim.lr=.inf", "optim.lr=inf: use 0 or more, but finite"),
        ("data.context=9", "data.context=9: use 0..8"),
        ("resume=/nowhere", "expected one of ['none', 'auto'] (key resume). It means: `auto` continues from the last"),
        ("data.size_px=512", "data.size_px=512: takes 2 values, written data.size_px=[512,512]"),
        ("augment.scale=[1,2,3]", "takes 2 values"),
        ("run=", "run= is empty: Folder of this run"),
    ],
)
def test_a_wrong_argument_names_its_key_and_a_fix(argument, text):
    with pytest.raises(InputError, match=None) as caught:
        cli.load(Config, [*NEEDED, argument])
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flag_and_its_value_are_rewritten_as_key_and_value():
    with pytest.raises(InputError, match="Write optim.lr=1e-3"):
        cli.load(Config, [*NEEDED, "--lr", "1e-3"])


def test_without_arguments_the_first_required_key_is_named():
    with pytest.raises(InputError, match="run= is missing"):
        cli.load(Config, [])


def test_a_missing_key_says_what_it_means():
    with pytest.raises(InputError, match="data.store= is missing: Folder written by kits_dist.prepare"):
        cli.load(Config, ["run=r"])


def test_broken_yaml_is_refused(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("optim: [unclosed")
    with pytest.raises(InputError, match="not readable as yaml"):
        cli.load(Config, [*NEEDED, f"config={bad}"])
    bad.write_text("- a list")
    with pytest.raises(InputError, match="must hold `key: value` lines, found list"):
        cli.load(Config, [*NEEDED, f"config={bad}"])


@dataclass(frozen=True)
class Args:
    what: str = MISSING
    """How the program ends."""


def ending(args: Args) -> None:
    raise {"input": InputError, "missing": MissingInput, "failed": JobFailed}[args.what](f"it is {args.what}")


@pytest.mark.parametrize(("what", "code"), [("input", 2), ("missing", 2), ("failed", 1)])
def test_exit_codes_and_one_message(what, code, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run(ending, Args, [f"what={what}"])
    assert caught.value.code == code
    assert capsys.readouterr().err.count(f"it is {what}") == 1


def test_a_file_where_a_folder_should_be_is_no_traceback(tmp_path, capsys):
    from kits_dist import phantom

    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        cli.run(phantom.main, phantom.Args, [f"output={tmp_path / 'file' / 'below'}", "cases=1", "size=[8,64,64]"])
    assert caught.value.code == 2
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["help", "--help"])
def test_help_lists_every_key_with_default_and_meaning(word, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run(ending, Config, [word])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for key, (_, _, meaning) in cli._keys(Config).items():
        assert key in shown
        assert meaning, f"{key} has no comment that says what it means"
        assert meaning in shown


def test_saved_configuration_loads_back_equal(tmp_path):
    from kits_dist.config import as_plain, save_config

    config = cli.load(Config, [*NEEDED, "data.size_px=96x128", "optim.pos_weight=[2.5]", "data.fold=all"])
    save_config(config, tmp_path / "config.yaml")
    assert cli.load(Config, [f"config={tmp_path / 'config.yaml'}"]) == config
    assert cli.from_plain(Config, as_plain(config)) == config


@pytest.mark.parametrize(
    ("rank", "local", "code", "waits_s", "said"),
    [
        (0, 0, 1, [], "it failed"),
        (8, 0, 1, [5], "[rank 8] it failed"),  # its launcher, on another machine, does not hear of rank 0
        (9, 1, 1, [10], "[rank 9] it failed"),
        (9, 1, 75, [1], ""),
    ],
)
def test_one_process_of_many_prints_first(monkeypatch, capsys, rank, local, code, waits_s, said):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local))
    waited = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    with pytest.raises(SystemExit) as caught:
        cli._exit("it failed", code)
    assert caught.value.code == code and waited == waits_s and capsys.readouterr().err.strip() == said


def test_a_requested_stop_is_a_success_to_a_launcher_that_restarts(monkeypatch, capsys):
    def main(args):
        raise Preempted("stopped as asked.")

    for restarts, code in (("3", 0), ("0", 75)):
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
        with pytest.raises(SystemExit) as caught:
            cli.run(main, Config, NEEDED)
        assert caught.value.code == code


def test_help_does_not_depend_on_the_layout_of_a_field():
    @dataclass(frozen=True)
    class Wrapped:
        size: tuple[int, int, int] = (
            1,
            2,
            3,
        )
        """Slices,
        rows, columns."""
        bare: int = 0

    assert cli.help_table(Wrapped) == "  size  [1,2,3]  Slices, rows, columns.\n  bare  0"


def test_help_knows_inherited_fields():
    @dataclass(frozen=True)
    class Base:
        a: int = 1
        """From the base."""
        b: int = 2
        """From the base."""

    @dataclass(frozen=True)
    class Derived(Base):
        b: int = 3
        """From the class itself."""

    assert cli.help_table(Derived) == "  a  1  From the base.\n  b  3  From the class itself."


def test_every_key_of_a_training_has_a_meaning():
    assert [key for key, (_, _, meaning) in cli._keys(Config).items() if not meaning] == []


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_every_configuration_in_the_folder_is_valid(name):
    config = cli.load(Config, [f"config={ROOT / 'configs' / name}", "data.store=s", "run=r"])
    if name.startswith("poster_"):
        assert config.data.mask == ("kidney" if name.endswith("_tumor.yaml") else "none")
        assert config.augment.flip_vertical == 0.5 and config.optim.patience == 0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_yaml_is_read_as_editors_and_people_write_it(tmp_path, monkeypatch, encoding):
    monkeypatch.setenv("SCRATCH", "/scratch")
    path = tmp_path / "A.YAML"
    text = "run: ~/Müller\r\ndata:\r\n  store: $SCRATCH/store\r\n  planes: [axial]\r\n"
    path.write_bytes(text.encode(encoding))
    config = cli.load(Config, [f"config=file://{path}"])
    assert config.run == os.path.expanduser("~/Müller")
    assert config.data.store == "/scratch/store" and config.data.planes == ("axial",)
    path.write_text("data: {store: $NOWHERE/store}\n")
    with pytest.raises(InputError, match=r"data.store=\$NOWHERE/store: \$NOWHERE is not set"):
        cli.load(Config, ["run=r", f"config={path}"])


def test_paths_of_the_command_line_are_read_as_people_type_them(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    config = cli.load(Config, ["run='${SCRATCH}/r'", "data.store=~/s\r", "resume=auto\r"])
    assert (config.run, config.data.store, config.resume) == ("/scratch/r", os.path.expanduser("~/s"), "auto")
    with pytest.raises(InputError, match="line ends of Windows"):
        cli.load(Config, ["run=r", "\r"])


def failed(capsys, error: BaseException) -> tuple[int, str]:
    def main(args):
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.run(main, Config, NEEDED)
    return caught.value.code, capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (errno.EROFS, 2, "Name another file or folder"),
        (errno.EINVAL, 2, "Name another file or folder"),
        (errno.ENOSPC, 1, "free some space and run again"),
        (errno.EMFILE, 1, "ulimit -n"),
        (errno.EAGAIN, 1, "ulimit -u, or the container's limit of processes"),
        (errno.EIO, 1, "look at the disk and run again"),
        (errno.ESTALE, 1, "look at the disk and run again"),
    ],
)
def test_an_error_of_the_machine_is_one_sentence(capsys, number, code, said):
    found, message = failed(capsys, OSError(number, os.strerror(number), "/disk/a"))
    assert found == code and said in message and f"{os.strerror(number)}: /disk/a" in message and "\n" not in message


def test_without_a_temporary_folder_one_is_asked_for(capsys):
    error = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    code, message = failed(capsys, error)
    assert code == 2 and "found in ['/tmp']. Name a folder that can be written to: export TMPDIR=DIR" in message


def test_errors_without_a_file_keep_their_traceback_unless_they_say_enough(capsys):
    for error in (OSError(errno.EINVAL, "Invalid argument"), OSError("no number"), RuntimeError("a bug")):
        with pytest.raises(type(error)):
            failed(capsys, error)
    code, message = failed(capsys, RuntimeError("can't start new thread"))
    assert code == 1 and "no further thread can be started. Allow more: ulimit -u" in message


@pytest.mark.parametrize("rank", ["", "abc", "-1", "\u00b2"])
def test_a_malformed_rank_hides_no_message(monkeypatch, capsys, rank):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as caught:
        cli._exit("it failed", 2)
    assert caught.value.code == 2 and capsys.readouterr().err == "it failed\n"


def test_a_malformed_environment_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda args: None, Config, NEEDED)
    assert caught.value.code == 2 and "WORLD_SIZE=two in the environment is not a number" in capsys.readouterr().err
