"""Where spaces come from: our packages, files, installed packages, and calls; and that names in data run nothing."""

import json
import sys
from dataclasses import make_dataclass

import pytest

from srnas_fast.errors import InputError
from srnas_fast.spaces import known, own
from srnas_fast.spaces.known import find_space, known_spaces, load_space, register_code, register_space
from srnas_fast.spaces.space import Space

SYSTEMS = ("dlsr", "hinas-sr", "hnas", "trilevel")
OURS = ["hinas-denoise", *(f"{system}-x{scale}" for system in SYSTEMS for scale in (2, 3, 4))]
FILE = """
from dataclasses import replace
from srnas_fast.spaces import find_space

SPACE = replace(find_space("hinas-denoise"), name="{name}")
ALSO = SPACE
NUMBER = 3
"""


@pytest.fixture(autouse=True)
def nothing_of_ones_own(monkeypatch, tmp_path):
    monkeypatch.setattr(own, "_LOADED", {})
    monkeypatch.setattr(known, "_REGISTERED", {})
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("srnas_fast_own_", "package_of_")):
            del sys.modules[name]


def space(name="mine"):
    return Space(**(vars(find_space("hinas-denoise")) | {"name": name}))


def file(path, name="mine"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(FILE.format(name=name))


def install(folder, package, offers, content):
    """A package as pip leaves it, with what it offers: name -> module:SPACE."""
    (folder / f"{package}.py").write_text(content)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in offers.items()]
    (info / "entry_points.txt").write_text("\n".join(["[srnas_fast.spaces]", *lines, ""]))


def test_ours_are_known_by_their_names():
    assert sorted(OURS) == sorted(known_spaces())
    for name in known_spaces():
        assert find_space(name).name == name and load_space(name) is find_space(name)


# Calls


def test_a_registered_space_is_found():
    mine = register_space(space())
    assert register_space(mine) is mine is find_space("mine") is load_space("mine")
    assert "mine" in known_spaces()


def test_two_of_one_name_are_refused():
    register_space(space())
    for name in ("mine", "hinas-denoise"):
        with pytest.raises(InputError, match=f"there is a search space '{name}' already; give yours another name"):
            register_space(space(name))
    assert register_space(find_space("hinas-denoise")) is find_space("hinas-denoise")


@pytest.mark.parametrize("name", [None, 3, "", " ", "-x", "--help", "a ", "a\nb", "my.py:SPACE", ["a"]])
def test_names_that_are_none(name):
    with pytest.raises(InputError, match="a search space is named .*; give a short text such as my-space"):
        register_space(space(name))


@pytest.mark.parametrize("given", [None, Space, "hinas-denoise", {}])
def test_what_is_no_space(given):
    with pytest.raises(InputError, match="is no search space, but of type .*; give a srnas_fast.spaces.Space"):
        register_space(given)


@pytest.mark.parametrize("part", ["supernet_config", "network_config", "data", "loss"])
@pytest.mark.parametrize(
    "given, message",
    [
        (type("Size", (), {"width": 16}), "is Size without @dataclass"),
        (find_space("hinas-denoise").data(), "is a DenoisingData; give a class made by @dataclass"),
        (lambda: None, "is a function; give a class made by @dataclass"),
        (make_dataclass("Size", ["width", "depth"]), "is Size without a default for width, depth; give one to each"),
    ],
)
def test_configurations_that_are_no_settings(part, given, message):
    with pytest.raises(InputError, match=f"the {part} of search space mine {message}"):
        register_space(Space(**(vars(space()) | {part: given})))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InputError, match="unknown search space 'mars'; known: .*hinas-denoise.*; one of your own"):
        find_space("mars")


# Files


def test_a_file_gives_its_space_and_that_is_then_known_by_its_name(tmp_path):
    file(tmp_path / "spaces" / "my.py")
    found = load_space("spaces/my.py:SPACE")
    assert load_space("spaces/my.py:SPACE") is found is load_space("spaces/my.py:ALSO")
    assert found is find_space("mine") and found.name == "mine"


def test_code_makes_its_spaces_known(tmp_path):
    file(tmp_path / "my.py")
    register_code("my.py")
    register_code("my.py")
    assert find_space("mine").name == "mine" and known_spaces().count("mine") == 1


def test_code_may_hold_no_space_and_import_ours(tmp_path):
    (tmp_path / "ops.py").write_text("from srnas_fast.spaces.hinas import DENOISING\nA = 1\n")
    register_code("ops.py")
    assert known._REGISTERED == {}


@pytest.mark.parametrize("take", [register_code, lambda path: load_space(f"{path}:SPACE")])
def test_a_file_whose_space_has_a_name_of_ours_is_refused(tmp_path, take):
    file(tmp_path / "my.py", name="dlsr-x2")
    with pytest.raises(InputError, match=r"^my.py.*: there is a search space 'dlsr-x2' already.* another name$"):
        take("my.py")


def test_two_files_with_one_space_s_name(tmp_path):
    file(tmp_path / "a.py")
    file(tmp_path / "b.py")
    load_space("a.py:SPACE")
    with pytest.raises(InputError, match="b.py: there is a search space 'mine' already"):
        load_space("b.py:SPACE")


def test_a_file_with_two_spaces_of_one_name_is_refused_before_the_search(tmp_path):
    (tmp_path / "my.py").write_text(FILE.format(name="mine") + "DEMO = replace(SPACE, search_presets={'demo': {}})\n")
    for reference in ("my.py:SPACE", "my.py:DEMO"):
        with pytest.raises(InputError, match="my.py: there is a search space 'mine' already; give yours another name"):
            load_space(reference)


@pytest.mark.parametrize(
    "reference, message",
    [
        ("my.py:NUMBER", "my.py:NUMBER: this is no search space, but of type int"),
        ("my.py:Space", "my.py holds no 'Space'; it holds replace, find_space, SPACE"),
        ("my.py:replace", "my.py:replace: this is no search space, but of type function"),
        ("my.py:", "my.py holds no ''"),
        ("nowhere.py:SPACE", "nowhere.py: no such Python file"),
        ("my.py", "unknown search space 'my.py'.*search FILE.py:SPACE"),
    ],
)
def test_references_that_give_no_space(tmp_path, reference, message):
    file(tmp_path / "my.py")
    with pytest.raises(InputError, match=message):
        load_space(reference)


def test_a_space_that_lacks_parts_is_told_with_its_line(tmp_path):
    (tmp_path / "my.py").write_text("from srnas_fast.spaces import Space\n\nSPACE = Space(name='mine')\n")
    with pytest.raises(InputError, match=r"my.py cannot be run: TypeError: .* missing .*\(my.py, line 3\)"):
        load_space("my.py:SPACE")


# Names in data


@pytest.mark.parametrize("name", ["my.py:SPACE", "./my.py:SPACE", "/tmp/my.py:SPACE"])
def test_a_name_in_data_runs_no_file(tmp_path, name):
    (tmp_path / "my.py").write_text("open('it-ran', 'w')\n")
    with pytest.raises(InputError, match="unknown search space.* for what was searched in it --code FILE.py"):
        find_space(name)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("name", ["my.py:SPACE", "mine"])
def test_a_genotype_s_file_runs_nothing(tmp_path, name):
    from srnas_fast.train.checkpoint import read_genotype

    (tmp_path / "my.py").write_text("open('it-ran', 'w')\n")
    (tmp_path / "genotype.json").write_text(json.dumps({"space": name}))
    with pytest.raises(InputError, match="--code"):
        read_genotype(tmp_path)
    assert not (tmp_path / "it-ran").exists()


# Installed packages


def test_an_installed_package_offers_a_space_and_is_imported_only_when_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "package_of_mine", {"offered": "package_of_mine:SPACE"}, FILE.format(name="offered"))
    assert "offered" in known_spaces() and "package_of_mine" not in sys.modules
    found = find_space("offered")
    assert found.name == "offered" and find_space("offered") is found is load_space("offered")
    assert known_spaces().count("offered") == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ("1 / 0", r"search space 'offered' of package_of_mine \(package_of_mine:SPACE\): ZeroDivisionError.*line 1"),
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("SPACES = 3", "AttributeError: module 'package_of_mine' has no attribute 'SPACE'"),
        ("SPACE = 3", "this is no search space, but of type int"),
        (FILE.format(name="another"), "it is named 'another'; its name and that of its entry point must be one"),
    ],
)
def test_broken_packages_are_named_and_harm_nobody_else(tmp_path, monkeypatch, content, message):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "package_of_mine", {"offered": "package_of_mine:SPACE"}, content)
    assert find_space("hinas-denoise").name == "hinas-denoise"
    with pytest.raises(InputError, match=message) as error:
        find_space("offered")
    assert "\n" not in str(error.value)


def test_two_packages_that_offer_one_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for package in ("package_of_mine", "package_of_yours"):
        install(tmp_path, package, {"offered": f"{package}:SPACE"}, FILE.format(name="offered"))
    with pytest.raises(InputError, match="several search spaces 'offered': package_of_.* and package_of_.*; remove"):
        find_space("offered")


def test_ours_stand_before_those_of_packages_and_files_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "package_of_mine", {"dlsr-x2": "package_of_mine:SPACE", "mine": "package_of_mine:S"}, "1 / 0")
    assert find_space("dlsr-x2").supernet.__module__ == "srnas_fast.spaces.dlsr.supernet"
    file(tmp_path / "my.py")
    register_code("my.py")
    assert find_space("mine").name == "mine" and len(known_spaces()) == len(set(known_spaces()))
