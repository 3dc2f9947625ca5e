"""What `use` reaches, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsam.dsl.diagnostics import Diagnostic, ProgramError
from nsam.dsl.imports import load_file, load_text, standard_modules

RULE = "nsam 1\n\nrule mine(lr) {\n  self <- self - lr * grad\n}\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def errors(path: Path) -> tuple[Diagnostic, ...]:
    with pytest.raises(ProgramError) as error:
        load_file(path)
    return error.value.diagnostics


def test_the_standard_library_is_found_and_loaded_once() -> None:
    program = load_text("nsam 1\n\nuse std.rules (gd)\nuse std.rules (m3)\n")
    assert list(program.files) == ["std.rules", "<text>"]
    assert [found.file for found in program.root.uses] == ["std.rules", "std.rules"]
    declaration = program.files["std.rules"].declaration("m3")
    assert declaration is not None
    assert declaration.name.id == "m3"
    assert program.files["std.rules"].declaration("nothing") is None


def test_every_standard_module_loads() -> None:
    assert "std.rules" in standard_modules()
    for module in standard_modules():
        with pytest.raises(ProgramError) as error:
            load_text(f"nsam 1\nuse {module} (a_name_that_no_module_has)\n")
        assert [found.code for found in error.value.diagnostics] == ["N0012"]


def test_files_are_found_from_the_file_that_uses_them(tmp_path: Path) -> None:
    write(tmp_path, "parts/rules/mine.nsam", RULE)
    write(
        tmp_path, "parts/middle.nsam", 'nsam 1\nuse "./rules/mine.nsam" (mine)\nuse "../top.nsam" (mine)\n' + RULE[6:]
    )
    write(tmp_path, "top.nsam", RULE)
    main = write(tmp_path, "main.nsam", 'nsam 1\nuse "./parts/middle.nsam" (mine)\nuse "top.nsam" (mine)\n')
    program = load_file(main)
    names = [os.path.relpath(key, tmp_path) for key in program.files]
    assert names == ["parts/rules/mine.nsam", "top.nsam", "parts/middle.nsam", "main.nsam"]


def test_a_path_is_relative_to_the_main_file_wherever_the_process_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "p/mine.nsam", RULE)
    write(tmp_path, "p/main.nsam", 'nsam 1\nuse "./mine.nsam" (mine)\n')
    monkeypatch.chdir(tmp_path)
    assert len(load_file("p/main.nsam").files) == 2
    monkeypatch.chdir(tmp_path / "p")
    assert len(load_file("main.nsam").files) == 2


def test_a_circle_is_drawn(tmp_path: Path) -> None:
    main = write(tmp_path, "a.nsam", 'nsam 1\nuse "./b.nsam" (mine)\n')
    write(tmp_path, "b.nsam", 'nsam 1\nuse "./c.nsam" (mine)\n' + RULE[6:])
    write(tmp_path, "c.nsam", 'nsam 1\nuse "./b.nsam" (mine)\n' + RULE[6:])
    (found,) = errors(main)
    assert found.code == "N0011"
    assert [part.rsplit("/", 1)[-1] for part in found.notes[0].split(" → ")] == ["b.nsam", "c.nsam", "b.nsam"]


def test_a_file_that_uses_itself(tmp_path: Path) -> None:
    (found,) = errors(write(tmp_path, "a.nsam", 'nsam 1\nuse "./a.nsam" (mine)\n'))
    assert found.code == "N0011"


@pytest.mark.parametrize(
    "path", ["../outside.nsam", "./../outside.nsam", "x/../../outside.nsam", "link.nsam", "folder/o.nsam"]
)
def test_nothing_outside_the_folder_of_the_main_file(tmp_path: Path, path: str) -> None:
    write(tmp_path, "outside.nsam", RULE)
    write(tmp_path, "elsewhere/o.nsam", RULE)
    project = tmp_path / "project"
    main = write(project, "main.nsam", f'nsam 1\nuse "{path}" (mine)\n')
    (project / "link.nsam").symlink_to(tmp_path / "outside.nsam")
    (project / "folder").symlink_to(tmp_path / "elsewhere")
    (found,) = errors(main)
    assert found.code == "N0010"
    assert found.primary is not None
    assert found.primary.span.text == f'"{path}"'


def test_no_absolute_path_even_inside(tmp_path: Path) -> None:
    inside = write(tmp_path, "mine.nsam", RULE)
    (found,) = errors(write(tmp_path, "main.nsam", f'nsam 1\nuse "{inside}" (mine)\n'))
    assert found.code == "N0010"


def test_a_folder_with_a_similar_name_is_outside(tmp_path: Path) -> None:
    write(tmp_path, "project2/mine.nsam", RULE)
    (found,) = errors(write(tmp_path, "project/main.nsam", 'nsam 1\nuse "../project2/mine.nsam" (mine)\n'))
    assert found.code == "N0010"


def test_missing_files_and_names_come_with_hints(tmp_path: Path) -> None:
    write(tmp_path, "mine.nsam", RULE)
    text = 'nsam 1\nuse "./mime.nsam" (mine)\nuse "./mine.nsam" (mien)\nuse std.rule (gd)\nuse std.rules (adamm)\n'
    found = errors(write(tmp_path, "main.nsam", text))
    assert [one.code for one in found] == ["N0009", "N0012", "N0008", "N0012"]
    assert [("mine.nsam" in (one.help or "") or "`" in (one.help or "")) for one in found] == [True] * 4
    assert [one.fix.replacement for one in found if one.fix] == ["mine", "std.rules", "adamw"]


def test_a_folder_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (found,) = errors(write(tmp_path, "main.nsam", 'nsam 1\nuse "./sub" (mine)\n'))
    assert found.code == "N0009"


def test_errors_of_all_files_are_reported_together(tmp_path: Path) -> None:
    write(tmp_path, "b.nsam", "nsam 1\nrule mine(lr) {\n  self = grad\n}\n")
    write(tmp_path, "c.nsam", "nsam 2\n")
    main = write(tmp_path, "main.nsam", 'nsam 1\nuse "./b.nsam" (mine)\nuse "./c.nsam" (x)\nuse "./b.nsam" (mine)\n')
    assert [one.code for one in errors(main)] == ["N0107", "N0006"]


def test_a_program_brings_together_at_most_100_files(tmp_path: Path) -> None:
    for number in range(120):
        follow = f'use "./f{number + 1}.nsam" (mine)\n' if number < 119 else ""
        write(tmp_path, f"f{number}.nsam", f"nsam 1\n{follow}" + RULE[6:])
    found = errors(tmp_path / "f0.nsam")
    assert [one.code for one in found] == ["N0013"]
