"""What a release says of itself, against the forms that others read it by and the one place of the version."""

import re
from pathlib import Path

import yaml
from packaging.version import Version

import s4nd

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_changelog_is_in_the_form_of_keep_a_changelog_and_has_this_version():
    unreleased, *released = re.findall(r"^## \[(.+)\](?: - (\d{4}-\d\d-\d\d))?$", text("CHANGELOG.md"), re.MULTILINE)
    assert unreleased == ("Unreleased", "") and all(date for _, date in released)
    versions = [Version(version) for version, _ in released]
    assert versions == sorted(versions, reverse=True)
    assert set(re.findall(r"^### (.*)$", text("CHANGELOG.md"), re.MULTILINE)) <= KINDS
    if Version(s4nd.__version__) not in versions:
        assert f"To be {s4nd.__version__}" in text("CHANGELOG.md").split("\n## ")[1]


def test_citation_names_the_software_and_the_paper_and_leaves_the_version_to_the_package():
    cff = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= cff.keys() and cff["type"] == "software"
    assert cff["license"] == "Apache-2.0" and "version" not in cff
    (paper,) = cff["references"]
    assert paper["title"].startswith("S4ND: Modeling Images and Videos") and paper["year"] == 2022
    assert [author["family-names"] for author in paper["authors"]][:3] == ["Nguyen", "Goel", "Gu"]
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2210.06583"}]


def test_a_bug_comes_with_what_doctor_says():
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder.glob("*.yml")}
    assert {"bug", "feature", "config"} == set(forms)
    for form in (forms["bug"], forms["feature"]):
        assert form["name"] and form["description"]
        ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(ids) == len(set(ids)) > 1
    (doctor,) = (part for part in forms["bug"]["body"] if "s4nd doctor" in part["attributes"].get("label", ""))
    assert doctor["validations"] == {"required": True}
