"""What a recipe may say, and what is said of one that is wrong."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.cli.main import main
from posttrain.core.errors import ConfigError, PosttrainError
from posttrain.data.settings import Source
from posttrain.pipeline.plan import moved
from posttrain.pipeline.recipe import Recipe, load
from posttrain.pipeline.schema import schema
from posttrain.stages.index import entries

GOOD = """\
name: support
stages:
  adapt: {model: models/base, data: manual.txt, replay: general.jsonl}
  sft:
    model: adapt
    data: [train.jsonl, "chat.jsonl,share=0.1", {path: more.jsonl, limit: 5}]
    learning_rate: 1e-4
    lora: true
    groups: {embed: 0}
  check: {stage: eval, model: sft, against: adapt, exact: held-out.jsonl}
"""


def read(tmp_path: Path, text: str, *changes: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path, changes)


def test_a_recipe_is_settings_and_parents(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD)
    assert recipe.name == "support"
    assert [(s.name, s.kind.name, s.lineage, s.where) for s in recipe.stages] == [
        ("adapt", "adapt", {}, f"{tmp_path}/recipe.yaml:3"),
        ("sft", "sft", {"model": "adapt"}, f"{tmp_path}/recipe.yaml:4"),
        ("check", "eval", {"model": "sft", "against": "adapt"}, f"{tmp_path}/recipe.yaml:10"),
    ]
    adapt, sft, check = (s.settings.model_dump() for s in recipe.stages)
    assert (adapt["replay"][0]["path"], adapt["optimiser"]["schedule"]) == (
        "general.jsonl",
        "cosine",
    )
    assert [(s["path"], s["share"], s["limit"]) for s in sft["data"]["data"]] == [
        ("train.jsonl", None, None),
        ("chat.jsonl", 0.1, None),
        ("more.jsonl", None, 5),
    ]
    assert (sft["optimiser"]["learning_rate"], sft["optimiser"]["groups"], sft["lora"]["rank"]) == (
        1e-4,
        {"embed": 0.0},
        16,
    )
    assert [one["path"] for one in check["tasks"]["exact"]] == ["held-out.jsonl"]


def test_rows_of_an_earlier_stage_are_named_like_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read(
        tmp_path,
        """\
stages:
  mine: {stage: sample_pairs, model: m, data: p.jsonl, scorer: exact}
  dpo:
    stage: preference
    model: m
    data: [other.jsonl, "mine,weight=2", {path: mine, limit: 5}, ./mine]
    validation: mine
  check: {stage: eval, model: dpo, exact: dpo}
""".replace("exact: dpo", f"exact: {tmp_path}/dpo"),
    )
    dpo = recipe.stages[1]
    assert (list(dpo.rows), list(dpo.feeds), dpo.models) == (["data", "validation"], ["mine"], {})
    assert dpo.feeds["mine"].path == "pairs.jsonl"
    assert dpo.lineage == {"data": "mine", "validation": "mine"}
    placed: Any = moved(dpo.settings, {"mine": "artifacts/pairs.jsonl"})
    assert [(one.path, one.weight, one.limit) for one in placed.data.data] == [
        ("other.jsonl", None, None),
        ("artifacts/pairs.jsonl", 2.0, None),
        ("artifacts/pairs.jsonl", None, 5),
        ("./mine", None, None),
    ]
    assert (
        placed.data.validation[0].path == "artifacts/pairs.jsonl"
        and placed.model_copy(update={"data": dpo.settings.data}) == dpo.settings
    )  # type: ignore[attr-defined]
    # a file that happens to have the name of a stage that makes no rows
    monkeypatch.chdir(tmp_path)
    (tmp_path / "check").write_text("")
    assert (
        read(tmp_path, "stages:\n  check: {stage: eval, model: m, exact: check}\n").stages[0].feeds
        == {}
    )


def test_a_mapping_is_the_recipe_that_a_file_would_be(tmp_path: Path) -> None:
    from_file, from_mapping = (
        read(tmp_path, GOOD),
        load(yaml.safe_load(GOOD.replace("1e-4", "0.0001"))),
    )
    assert [s.settings for s in from_file.stages] == [s.settings for s in from_mapping.stages]
    assert read(tmp_path, GOOD.replace("name: support\n", "")).name == "recipe"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E+2", 100.0),
        ("-2.5e3", -2500.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("7", 7),
        ("010", 10),
        ("-08", -8),
        ("+1", 1),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("-0x1F", "-0x1F"),
        ("1:30:00", "1:30:00"),
        ("1:30.5", "1:30.5"),
        ("1_000", "1_000"),
        ("2026-11-27", "2026-11-27"),
        ("01e2", 100.0),
        ("+.5E1", 5.0),
        (".", "."),
        ("-.inf", -math.inf),
        (".INF", math.inf),
        ("inf", "inf"),
        ("=", "="),
        ("<<", "<<"),
        ("~", None),
        ("", None),
        ("!!int '010'", 10),
        ("!!float 3", 3.0),
        ("!!str 010", "010"),
        ("'010'", "010"),
        ("{a: }", {"a": None}),
        ("true", True),
        ("TRUE", True),
        ("tRue", "tRue"),
        ("False", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("e-4", "e-4"),
        ("1e", "1e"),
        ("v1.2", "v1.2"),
        ("'1e-4'", "1e-4"),
        ("null", None),
        ("a,weight=2", "a,weight=2"),
        ("{a: 1e-3}", {"a": 1e-3}),
        ("[1e5, no]", [1e5, "no"]),
    ],
)
def test_values_are_yaml_as_people_mean_it(tmp_path: Path, text: str, value: Any) -> None:
    from posttrain.pipeline import recipe

    found = yaml.load(text, recipe._Loader)
    assert (found, type(found) is type(value) or isinstance(value, dict)) == (value, True)


GOOD_START = "stages:\n  sft:\n    model: m\n    data: d\n"

# every text, the line that is named, what is said and the cure
WRONG = [
    (
        "stages:\n  sft:\n    model: m\n    data: d\n    learning_rat: 1\n",
        5,
        "sft has no option 'learning_rat'",
        "did you mean 'learning_rate'?",
    ),
    (
        "stages:\n  sft:\n    model: m\n    data: d\n    out: o\n",
        5,
        "sft has no option 'out'",
        None,
    ),
    (
        "stages:\n  stf: {model: m}\n",
        2,
        "there is no stage 'stf'",
        f"write stage: with one of {', '.join(entries())}, or FILE.py:NAME of your own",
    ),
    (
        "stages:\n  a: {stage: data-select, model: m}\n",
        2,
        "there is no stage 'data-select'",
        "write stage: data_select",
    ),
    ("stages:\n  a:\n    model: m\n    stage: evl\n", 4, "there is no stage 'evl'", None),
    (f"{GOOD_START}    steps: 1:30:00\n", 5, "steps = '1:30:00': Input should be a valid", None),
    (f"{GOOD_START}    steps: true\n", 5, "steps = True: true and false are no numbers", None),
    (f"{GOOD_START}    betas: [0.9, false]\n", 5, "true and false are no numbers", None),
    (f"{GOOD_START}    groups: {{embed: true}}\n", 5, "true and false are no numbers", None),
    (f"{GOOD_START}    validation: {{path: a, limit: true}}\n", 5, "limit = True: true and", None),
    (f"{GOOD_START}    patience: 2\n", 5, "--patience has no effect without --validation", None),
    (f"{GOOD_START}    epochs: .inf\n", 5, "epochs = inf: Input should be a finite number", None),
    (f"{GOOD_START}    steps: !!int yes\n", 5, "not YAML: 'yes' is no int of YAML 1.2", None),
    (f"{GOOD_START}    steps: {'9' * 5000}\n", 5, "is no int of YAML 1.2", None),
    ("nam: x\nstages: {}\n", 1, "unknown key 'nam'", "did you mean 'name'?"),
    ("name: x\nname: y\n", 2, "not YAML: the key 'name' stands twice", "correct the line"),
    (
        "stages:\n  sft:\n    model: m\n    model: n\n",
        4,
        "not YAML: the key 'model' stands twice",
        None,
    ),
    (
        "stages:\n  sft:\n\tmodel: m\n",
        3,
        "not YAML: found character '\\t' that cannot start any token",
        None,
    ),
    ("stages:\n  {{x}}: 1\n", 2, "not YAML: a key is text", None),
    ("stages:\n  sft: {model: [m\n", 3, "not YAML: ", None),
    # what YAML reads and Python cannot
    ("stages:\n  sft:\n    seed: !!int x\n", 3, "not YAML: 'x' is no int", None),
    ("stages:\n  sft:\n    model: m\n    seed: 2024-99-99\n", 4, "should be a valid integer", None),
    (f"stages:\n  sft:\n    seed: {'9' * 5000}\n", 3, "is no int of YAML 1.2", None),
    (
        f"stages:\n  sft:\n    model: {'[' * 10_000}\n",
        3,
        "not YAML: values are nested too deep",
        None,
    ),
    ("stages:\n  sft:\n    data: &x [*x]\n", 3, "not YAML: a value that holds itself", None),
    ('stages:\n  sft:\n    model: "a\\0b"\n', 3, "model = 'a\\x00b' holds a NUL", "remove it"),
    ('stages:\n  sft:\n    model: "\\ud800"\n', 3, "model = '\\ud800' is not UTF-8", None),
    ("stages:\n  sft:\n    model: !!binary aGk=\n", 3, "model holds bytes", None),
    (
        "stages:\n  sft:\n    model: m\n    steps: 9223372036854775808\n",
        4,
        "steps is a whole",
        None,
    ),
    ("- a\n- b\n", None, "a recipe is a mapping with name and stages", None),
    ("", None, "a recipe is a mapping", None),
    ("name: x\n", None, "the recipe has no stages", None),
    ("stages: {}\n", None, "the recipe has no stages", None),
    ("stages: [sft]\n", None, "the recipe has no stages", None),
    ("name: a b\n", None, "name = 'a b': letters, digits", None),
    ("stages:\n  sft: m\n", 2, "the stage 'sft' has no options", None),
    ("stages:\n  s/t: {stage: sft}\n", 2, "a stage cannot be named 's/t'", None),
    ("stages:\n  1: {stage: sft}\n", 2, "a stage cannot be named 1", None),
    (
        "stages:\n  sft:\n    model: ${NOT_THERE}/m\n",
        3,
        "the environment has no variable NOT_THERE",
        "export NOT_THERE=…",
    ),
    (
        "stages:\n  sft:\n    data:\n      - {path: '${NOT_THERE}'}\n",
        3,
        "the environment has no variable NOT_THERE",
        None,
    ),
    (
        "stages:\n  sft:\n    model: m\n    data: d\n    epochs: many\n",
        5,
        "epochs = 'many': Input should be a valid",
        None,
    ),
    (
        "stages:\n  sft:\n    data: d\n    epochs: -1\n    model: m\n",
        4,
        "epochs = -1: Input should be greater than 0",
        None,
    ),
    (
        "stages:\n  sft:\n    model: [m]\n    data: d\n",
        3,
        "model = ['m']: Input should be a valid string",
        None,
    ),
    (
        "stages:\n  sft:\n    model: m\n    data: d\n    lora: yes\n",
        5,
        "lora = 'yes': it is True or False",
        None,
    ),
    (
        "stages:\n  adapt:\n    model: m\n    data: d\n    replay: 'r,weight=2'\n",
        5,
        "has a share, weight or epochs",
        None,
    ),
    (
        "stages:\n  sft:\n    model: m\n    data: [a.jsonl, 'b.jsonl,limit=0']\n",
        4,
        "'b.jsonl,limit=0': limit = '0': Input should be greater than or equal to 1",
        "rows at most: the first ones",
    ),
    (
        "stages:\n  sft:\n    model: m\n    data: {path: a.jsonl, limt: 2}\n",
        4,
        "'a.jsonl': unknown setting 'limt'",
        "did you mean 'limit'?",
    ),
    ("stages:\n\n  sft:\n    model: m\n", 3, "data is missing", None),
    ("stages:\n  sft:\n    data: d\n", 2, "model is missing", None),
    (
        "stages:\n  sft:\n    model: adapt\n    data: d\n  adapt: {model: m, data: d}\n",
        3,
        "sft starts from the stage 'adapt', which does not come before it",
        None,
    ),
    (
        "stages:\n  sft: {model: sft, data: d}\n",
        None,
        "sft starts from the stage 'sft', which does not come before it",
        None,
    ),
    (
        "stages:\n  eval: {model: m, exact: e}\n  sft:\n    model: eval\n    data: d\n",
        4,
        "the stage 'eval' makes no model",
        None,
    ),
    (
        (
            "stages:\n  eval: {model: m, exact: e}\n  sft:\n    model: m\n    data: [d, "
            "'eval,limit=3']\n"
        ),
        5,
        "the stage 'eval' makes no rows",
        "give a file",
    ),
    (
        (
            "stages:\n  sft:\n    model: m\n    data: d\n    validation: mine\n  mine: {stage: "
            "sample_pairs, model: sft, data: p}\n"
        ),
        5,
        "sft reads the rows of the stage 'mine', which does not come before it",
        "put that stage first; a file of that name is ./NAME",
    ),
]


@pytest.mark.parametrize(
    ("text", "line", "what", "cure"), WRONG, ids=lambda v: v[:40] if isinstance(v, str) else None
)
def test_what_is_wrong_is_said_with_file_line_and_cure(
    tmp_path: Path,
    text: str,
    line: int | None,
    what: str,
    cure: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert what in caught.value.what
    if line is not None:
        assert caught.value.where == f"{tmp_path}/recipe.yaml:{line}"
    assert caught.value.cure and cure in (None, caught.value.cure)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: Zürich".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(tmp_path / "latin.yaml")
    (tmp_path / "control.yaml").write_bytes(b"name: \x01")
    with pytest.raises(ConfigError, match="not YAML"):
        load(tmp_path / "control.yaml")


def test_variables_are_expanded_at_any_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "/data")
    recipe = read(
        tmp_path,
        "stages:\n  sft:\n    model: ${PLACE}/${PLACE}\n    data: [{path: '${PLACE}/a'}]\n"
        "    prompt_template: '$PLACE {prompt}'\n",
    )
    found: Any = recipe.stages[0].settings
    assert (found.model, found.data.data[0].path, found.data.prompting.prompt_template) == (
        "/data//data",
        "/data/a",
        "$PLACE {prompt}",
    )


def test_options_are_changed_by_set(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        GOOD,
        "sft.learning_rate=2e-5",
        "sft.data=[b.jsonl]",
        "check.match=contains",
        "adapt.seed=010",
    )
    adapt, sft, check = (s.settings for s in recipe.stages)
    found: Any = sft
    assert found.optimiser.learning_rate == 2e-5
    assert [one.path for one in found.data.data] == ["b.jsonl"] and isinstance(
        found.data.data[0], Source
    )
    assert (adapt.model_dump()["seed"], check.model_dump()["tasks"]["match"]) == (10, "contains")


@pytest.mark.parametrize(
    ("change", "what", "cure"),
    [
        ("sft.learning_rate", "is not STAGE.OPTION=VALUE", None),
        ("seed=1", "is not STAGE.OPTION=VALUE", None),
        ("stf.seed=1", "there is no stage 'stf'", "did you mean 'sft'?"),
        ("sft.sed=1", "sft has no option 'sed'", "did you mean 'seed'?"),
        ("sft.seed=x", "seed = 'x'", None),
        ("sft.seed=true", "seed = True: true and false are no numbers", None),
        ("sft.steps=1:30:00", "steps = '1:30:00'", None),
        ("sft.seed=[", "the value is not YAML", None),
        (f"sft.seed={'[' * 10_000}", "the value is not YAML: values are nested too deep", None),
        ("sft.seed=2024-99-99", "should be a valid integer", None),
        (
            "sft.lora_targets=&x [*x]",
            "sft.lora_targets: the value is not YAML: a value that holds itself",
            None,
        ),
        ("sft.model=check", "which does not come before it", None),
    ],
)
def test_changes_that_cannot_be(tmp_path: Path, change: str, what: str, cure: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, GOOD, change)
    assert what in caught.value.what and cure in (None, caught.value.cure)


# --------------------------------------------------------------------------------------- the schema


def fits(value: Any, rule: Any) -> bool:
    """Whether a value fits a JSON schema, of which this knows what ours has."""
    if "anyOf" in rule:
        return any(fits(value, one) for one in rule["anyOf"])
    if ("const" in rule and value != rule["const"]) or (
        "enum" in rule and value not in rule["enum"]
    ):
        return False
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "null": type(None),
        "integer": int,
        "number": (int, float),
    }
    wanted = rule.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and not any(
        isinstance(value, kinds[k]) and (k == "boolean" or not isinstance(value, bool))
        for k in wanted
    ):
        return False
    if isinstance(value, str) and "pattern" in rule and not re.search(rule["pattern"], value):
        return False
    if isinstance(value, list):
        return all(fits(one, rule.get("items", {})) for one in value)
    if isinstance(value, dict):
        own, others = rule.get("properties", {}), rule.get("additionalProperties", {})
        return (
            set(rule.get("required", ())) <= value.keys()
            and len(value) >= rule.get("minProperties", 0)
            and all(
                (
                    fits(one, own[k])
                    if k in own
                    else others is not False and fits(one, {} if others is True else others)
                )
                for k, one in value.items()
            )
        )
    return True


def test_the_schema_takes_good_recipes_and_no_bad_ones() -> None:
    rule, good = (
        schema(),
        {
            "name": "x",
            "stages": {
                "adapt": {
                    "model": "m",
                    "data": "a.txt",
                    "replay": ["b.txt,limit=2"],
                    "learning_rate": 1e-4,
                },
                "sft": {
                    "model": "adapt",
                    "data": [{"path": "a"}, "b"],
                    "lora": True,
                    "lora_rank": 4,
                    "groups": {"embed": 0},
                    "steps": None,
                },
                "check": {
                    "stage": "eval",
                    "model": "sft",
                    "against": None,
                    "exact": {"path": "e"},
                    "match": "contains",
                },
            },
        },
    )
    text = json.dumps(rule)
    # or `fits` would not see them
    assert "$ref" not in text and "allOf" not in text and "oneOf" not in text
    assert fits(good, rule)
    assert [s.kind.name for s in load(good).stages] == ["adapt", "sft", "eval"]
    for stage, option, value in [
        ("sft", "learning_rat", 1),
        ("sft", "epochs", "many"),
        ("sft", "lora", "yes"),
        ("sft", "model", 3),
        ("sft", "out", "o"),
        ("sft", "method", "nl"),
        ("sft", "betas", "x"),
        ("sft", "stage", "stf"),
        ("check", "match", "fuzzy"),
        ("adapt", "replay", 1),
    ]:
        bad = {
            **good,
            "stages": {**good["stages"], stage: {**good["stages"][stage], option: value}},
        }
        assert not fits(bad, rule), (stage, option)
        with pytest.raises(PosttrainError):
            load(bad)
    for bad in (
        {"stages": {}, "nam": 1},
        {"name": "x"},
        {"name": "a b", **good, "stages": {"sft": {"model": "m"}}},
        [],
        {**good, "name": "a b"},
        {"stages": {}},
    ):
        assert not fits(bad, rule), bad


def test_the_command_prints_the_schema_and_every_option_is_described(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["schema"]) == 0
    rule = json.loads(capfd.readouterr().out)
    stages = rule["properties"]["stages"]["properties"]
    assert list(stages) == list(entries())
    assert rule == json.loads(json.dumps(schema()))
    assert stages["sft"]["required"] == ["model", "data"] and stages["eval"]["required"] == [
        "model"
    ]
    assert all(
        one["description"]
        for kind in stages.values()
        for name, one in kind["properties"].items()
        if name not in ("stage", "lora")
    )
    sft = stages["sft"]["properties"]
    assert (
        sft["warmup"]["minimum"],
        sft["warmup"]["exclusiveMaximum"],
        sft["warmup"]["default"],
    ) == (0, 1, 0.03)
    assert (
        sft["steps"]["anyOf"][0] == {"minimum": 1, "type": "integer"}
        and "default" not in sft["steps"]
    )
    assert not any("out" in kind["properties"] for kind in stages.values())


HEAD = "name: a\nstages:\n  sft:\n    model: m\n    data: "
LAUGHS = "[&a0 [l,l,l,l,l,l,l,l,l]" + "".join(
    f", &a{n + 1} [{','.join([f'*a{n}'] * 9)}]" for n in range(9)
)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (f"{LAUGHS}]", "more than 100,000 values, with what stands behind aliases"),
        ("&a [*a]", "a value that holds itself"),
        ("{path: &a {b: *a}}", "a value that holds itself"),
        ("[" * 300 + "]" * 300, "values are nested more than 256 deep"),
        ("[" * 5000, "nested too deep"),
        (f"[&t '{'x' * 99999}', {'*t, ' * 200}]", "more than 100,000 values"),
    ],
    ids=["laughs", "itself", "mapping", "deep", "deeper", "text"],
)
def test_a_recipe_is_bounded(tmp_path: Path, value: str, what: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(HEAD + value)
    with pytest.raises(ConfigError, match=what) as caught:
        load(path)
    assert caught.value.where.startswith(str(path))
    path.write_text(HEAD + "a.jsonl")
    if what != "nested too deep":
        with pytest.raises(ConfigError, match=f"--set sft.data: .*{what}"):
            load(path, [f"sft.data={value}"])


def test_a_recipe_is_no_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="more than 262,144 characters"):
        load(Path("/dev/zero"))
    path = tmp_path / "a.yaml"
    path.write_text(HEAD + "a.jsonl\n" + "# long\n" * 40_000)
    with pytest.raises(ConfigError, match="more than 262,144 characters"):
        load(path)
    monkeypatch.setenv("POSTTRAIN_LIMITS", "2")
    assert load(path).name == "a"


def test_aliases_that_are_few_are_as_written_out(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(HEAD + "&d [a.jsonl, b.jsonl]\n    validation: *d\n")
    settings: Any = load(path).stages[0].settings
    assert settings.data.data == settings.data.validation != ()
