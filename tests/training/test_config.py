from __future__ import annotations

import json
import subprocess
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lycoris.errors import ConfigError
from lib_lycoris.training import config as config_module
from lib_lycoris.training.config import TrainConfig, json_schema, settings

SETTINGS = {item.key: item for item in settings()}


def values_of(item):
    """A strategy for values that the setting takes."""
    if item.key in ("embedding.rates", "training.schedule_steps"):
        plain = st.sampled_from(["1", "0.5:100, 1e-3:1000", "1:1,0"])
    elif item.key in ("output.name", "embedding.word"):
        plain = st.builds("{}{}z".format, st.sampled_from("aZ0_ß"), st.text("abcXYZ019-_äß (1)", max_size=20))
    elif item.key == "data.preprocessor_values":
        plain = st.lists(st.builds("{}={}".format, st.sampled_from(["low", "a b"]), st.sampled_from(["1", "#ff0000", "a=b"])), max_size=3)
    elif item.key in ("network.block_ranks", "training.block_learning_rates"):
        plain = st.lists(st.builds("{}={}".format, st.sampled_from(["mid_block", "*attn2*", "a=b"]), st.integers(1, 99)), max_size=3)
    elif item.choices:
        one = st.sampled_from(item.choices)
        plain = st.lists(one, min_size=1, max_size=4) if item.kind == "list of texts" else one
    elif item.kind == "whole number":
        step = item.multiple or 1
        plain = st.integers(-(-int(item.minimum) // step), int(item.maximum) // step).map(lambda number: number * step)
    elif item.kind == "number":
        plain = st.floats(item.minimum, item.maximum if item.maximum is not None else 1e6, exclude_min=item.above_minimum)
    elif item.kind == "yes or no":
        plain = st.booleans()
    else:
        text = st.builds("{}{}".format, st.sampled_from("a/\\'\"ü"), st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), max_size=20))
        plain = st.lists(text, max_size=3) if item.kind == "list of texts" else text
    return st.one_of(st.none(), plain) if item.optional else plain


KNOWN_BY = {
    **dict.fromkeys(("conv_rank", "conv_alpha", "tucker"), ("locon", "loha", "lokr")), "dora": ("lora", "locon", "loha", "lokr"),
    "rs_lora": ("lora", "locon", "loha", "lokr"), **dict.fromkeys(("factor", "decompose_both", "full_matrix"), ("lokr",)),
    **dict.fromkeys(("init_rank", "target_rank", "warmup", "final", "interval"), ("adalora",)),
    "rank_dropout": ("lora", "locon", "loha", "lokr", "adalora"), "dropout": ("lora", "locon", "loha", "lokr", "adalora", "full", "ia3"),
}


def made_to_fit(sections):
    """Sections that contradict nothing: of two that exclude each other the first stays, what a kind does not know is as it was."""
    data, network, training, output, embedding = (dict(sections[name]) for name in ("data", "network", "training", "output", "embedding"))
    sections = {**sections, "adapter": dict(sections["adapter"])}
    training["debiased"] = training["debiased"] and not training["min_snr_gamma"]
    training["ema"] = 0.0 if training["optimizer"] == "schedule_free" else training["ema"]
    network["rank_dropout"] = 0.0 if network["full_matrix"] else network["rank_dropout"]
    network["max_norm"] = None if network["dora"] else network["max_norm"]
    training["epochs"] = training["epochs"] if training["steps"] is None else None
    training["warmup_steps"] = min(training["warmup_steps"], training["steps"] or training["warmup_steps"])
    data["dataset"] = None if data["folders"] else data["dataset"]
    data["caption_template"] = "{caption}, {name}" if data["caption_template"] else None
    data["bucket_min"], data["bucket_max"] = None, None
    training["schedule_steps"] = training["schedule_steps"] if training["schedule"] == "constant" else None
    alone = network["kind"] == "embedding"
    embedding["word"] = None if network["kind"] == "adapter" else embedding["word"]
    if alone:
        layers = ("targets", "only", "exclude", "block_ranks", "start_from", "max_norm", "module_dropout")
        network |= {name: SETTINGS[f"network.{name}"].default for name in layers}
    if embedding["word"] is None and not alone:
        embedding = {name: SETTINGS[f"embedding.{name}"].default for name in embedding}
    data["trigger"] = data["trigger"] if embedding["word"] is None and not alone else None
    data["templates"] = data["templates"] if data["caption_template"] is None and (embedding["word"] or data["trigger"] or alone) else None
    embedding["start_from"] = embedding["start_from"] if embedding["init_text"] is None else None
    embedding["learning_rate"] = embedding["learning_rate"] if embedding["rates"] is None else None
    embedding["norm"] = "off" if training["optimizer"] == "schedule_free" else embedding["norm"]
    data["control_suffix"] = "".join(part for part in data["control_suffix"] if part not in "/\\ ") or "x"
    fit_adapter(sections["adapter"], data, network, training)
    for name, kinds in KNOWN_BY.items():
        if network["kind"] not in kinds:
            network[name] = SETTINGS[f"network.{name}"].default
    if network["init_rank"] is not None:
        network["init_rank"] = max(network["init_rank"], network["target_rank"] or network["rank"])
    network["dora_on_output"] = network["dora_on_output"] or not network["dora"]
    if network["kind"] not in ("lora", "locon", "adalora", "loha") or (network["kind"] == "loha" and network["dora"]) or not network["dora_on_output"]:
        output["form"] = "kohya"
    if embedding["word"] == output["name"]:
        output["form"] = "kohya"
    if embedding["word"] is not None:
        embedding["file"] = "one" if output["form"] == "kohya" else "two"
    return {**sections, "data": data, "network": network, "training": training, "output": output, "embedding": embedding}


def fit_adapter(adapter, data, network, training):
    """An adapter has nothing to do with layers and class pictures, other kinds nothing with control pictures."""
    if network["kind"] == "adapter":
        adapter["in_channels"] = 3 if adapter["in_channels"] == 2 else adapter["in_channels"]
        data["control_folder"] = None if data["preprocessor"] else data["control_folder"]
        data.update(prior_folder=None, prior_prompt=None)
        training["block_learning_rates"] = ()
        for name in ("targets", "only", "exclude", "block_ranks", "max_norm", "module_dropout"):
            network[name] = SETTINGS[f"network.{name}"].default
    else:
        adapter.update({name: SETTINGS[f"adapter.{name}"].default for name in adapter})
        data.update(control_folder=None, preprocessor=None)
    if not data["preprocessor"]:
        data.update(preprocessor=None, preprocessor_values=())


sections = st.fixed_dictionaries({
    section: st.fixed_dictionaries({item.name: values_of(item) for item in SETTINGS.values() if item.section == section})
    for section in {item.section for item in SETTINGS.values()}
}).map(made_to_fit)


@given(sections)
def test_any_config_comes_back_equal_from_its_toml_and_its_dict(tmp_path_factory, values):
    config = TrainConfig.from_dict(values)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_bytes(config.to_toml().encode())
    assert TrainConfig.from_toml(path) == config


def test_every_setting_has_help_and_a_default_that_is_valid():
    for item in SETTINGS.values():
        assert len(item.help) > 10 and item.help.endswith(".")
        if item.default is not None:
            assert item.check(item.default) == item.default


def test_every_key_of_the_config_is_a_setting_and_in_the_schema():
    keys = {f"{section}.{name}" for section, values in TrainConfig().to_dict().items() for name in values}
    assert keys == set(SETTINGS)
    assert keys == {f"{section}.{name}" for section, part in json_schema()["properties"].items() for name in part["properties"]}


@pytest.mark.parametrize(("key", "text", "value"), [
    ("training.learning_rate", "1e-3", 1e-3), ("training.steps", "12", 12), ("training.steps", "none", None), ("network.text_encoder", "false", False),
    ("network.targets", "q, k", ("q", "k")), ("data.folders", "a,b", ("a,b",)), ("data.folders", '["a", "b"]', ("a", "b")), ("output.name", "x", "x"),
    ("data.batch_size", 4.0, 4), ("model.v_prediction", True, "true"), ("network.alpha", 8, 8.0),
])
def test_set_reads_a_command_lines_text_and_plain_values(key, text, value):
    section, _, name = key.partition(".")
    got = getattr(getattr(TrainConfig().set(key, text), section), name)
    assert got == value and type(got) is type(value)


def test_set_leaves_the_config_itself_alone():
    config = TrainConfig()
    config.set("network.rank", "4")
    assert config == TrainConfig()


@pytest.mark.parametrize(("key", "value", "words"), [
    ("training.learning_rte", "1", "did you mean training.learning_rate?"),
    ("trainig.steps", "1", "did you mean training.steps?"),
    ("rank", "1", "network.rank"),
    ("data.rank", "1", "did you mean network.rank?"),
    ("training.learning_rate", "0", "training.learning_rate = 0.0: expected a number above 0, at most 10"),
    ("training.learning_rate", "nan", "expected a number"),
    ("training.learning_rate", "inf", "expected a number"),
    ("training.learning_rate", True, "expected a number"),
    ("training.steps", "0", "training.steps = 0: expected a whole number from 1 to"),
    ("training.steps", "1.5", 'training.steps = "1.5": expected a whole number'),
    ("network.rank", 2.5, "network.rank = 2.5: expected a whole number from 1 to 1024"),
    ("network.rank", None, "network.rank = null: expected a whole number"),
    ("data.resolution", "100", "a multiple of 8"),
    ("data.folders", 3, "data.folders = 3: expected a list of texts"),
    ("data.folders", '["a"', "expected a list of texts"),
    ("data.folders", "[a]", "as 'data.folders=[\"first\", \"second\"]' with quotation marks round all of it"),
    ("lr", "1", "expected section.key, as training.steps"),
    ("network.text_encoder", "maybe", "expected true or false"),
    ("adapter.kind", "full2", 'did you mean "full"?'),
    ("adapter.in_channels", "2", "expected 1 (grey) or 3 (colours)"),
    ("adapter.kind", "light", 'set network.kind = "adapter"'),
    ("data.preprocessor", "canny", 'set network.kind = "adapter"'),
    ("data.control_suffix", "a/b", "data.control_suffix"),
    ("data.preprocessor_values", "low", 'is not "NAME=VALUE"'),
    ("training.time_sampling", "cubik", 'did you mean "cubic"?'),
    ("network.kind", "locom", 'did you mean "locon"?'),
    ("network.targets", "q,kk", 'did you mean "k"?'),
    ("network.targets", "[]", "nothing would be trained"),
    ("training.optimizer", "prodigi", "did you mean"),
    ("training.precision", "fp8", "expected one of"),
    ("training.seed", "-1", "training.seed = -1"),
    ("output.name", "a/b", "output.name"),
    ("output.name", "..", "output.name"),
    ("output.name", "a:b", "output.name"),
    ("output.name", "", "output.name"),
    ("output.folder", " ", "output.folder"),
    ("data.caption_dropout", "1.01", "from 0 to 1"),
])
def test_a_wrong_value_or_key_is_told_in_one_line_that_names_it(key, value, words):
    with pytest.raises(ConfigError) as caught:
        TrainConfig().set(key, value)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("values", "words"), [
    ({"trainin": {}}, "did you mean training?"),
    ({"training": 3}, "expected a section"),
    ({"training": {"steps": 3, "epochs": 4}}, "give one of the two"),
    ({"training": {"steps": 3, "warmup_steps": 4}}, "use fewer"),
    ({"network": {"kind": "lora", "conv_rank": 4}}, "network.conv_rank = 4"),
    ({"network": {"rnk": 4}}, "did you mean network.rank?"),
    ([], "expected sections"),
])
def test_a_wrong_dict_is_told_in_one_line(values, words):
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(values)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "words"), [
    (b"[training\nsteps = 3", "no valid TOML"), (b"\xff\xfe\x00", "no UTF-8"), (b"[training]\nsteps = true", "training.steps = true"),
    (b"[data]\nfolder = 'x'", "did you mean data.folders?"), (b"[data]\nfolders = [1]", "data.folders = [1]"),
])
def test_a_wrong_config_file_is_told_in_one_line_with_its_name(tmp_path, content, words):
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_toml(path)
    assert words in str(caught.value) and "config.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_config_file_is_told_with_its_name(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        TrainConfig.from_toml(tmp_path / "missing.toml")


def test_a_config_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf[training]\nsteps = 7\n")
    assert TrainConfig.from_toml(path).training.steps == 7


def test_toml_is_read_by_pips_own_reader_where_python_has_none(tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    path.write_text('[data]\nfolders = ["ä"]\n', encoding="utf-8")
    real, tried = config_module.importlib.import_module, []

    def missing(name):
        tried.append(name)
        if name in ("tomllib", "tomli"):
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(config_module.importlib, "import_module", missing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # setuptools complains when pip is imported after distutils
        assert TrainConfig.from_toml(path).data.folders == ("ä",)
    assert tried[:3] == ["tomllib", "tomli", "pip._vendor.tomli"]


def test_without_any_toml_reader_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "config.toml").write_text("")

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(config_module.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match="install tomli"):
        TrainConfig.from_toml(tmp_path / "config.toml")


def test_importing_the_config_imports_neither_torch_nor_pillow():
    code = "import sys, lib_lycoris.training.config; print([name for name in ('torch', 'PIL', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_alphas_that_are_left_out_give_scale_one_everywhere():
    network = TrainConfig.from_dict({"network": {"rank": 8, "conv_rank": 4}}).network
    assert (network.linear_alpha, network.convolution_rank, network.convolution_alpha) == (8.0, 4, 4.0)
    network = TrainConfig.from_dict({"network": {"rank": 8, "alpha": 4, "conv_rank": 2}}).network
    assert network.convolution_alpha / network.convolution_rank == network.linear_alpha / network.rank


def test_epochs_become_steps_that_see_every_picture():
    training = TrainConfig.from_dict({"training": {"epochs": 3}}).training
    assert training.total_steps(draws=5, batch_size=2) == 8
    assert TrainConfig().training.total_steps(5, 2) == 1000
    assert all(TrainConfig().set("training.steps", n).training.total_steps(5, 2) == n for n in (1, 17))


@pytest.mark.parametrize(("text", "words"), [
    ("[general]\n[[datasets]]\nresolution = 512", "give it as data.dataset = "),
    ("[model_arguments]\npretrained_model_name_or_path = 'x'", "Save, load and share settings"),
])
def test_kohyas_own_files_are_known_and_where_they_belong_is_told(text, words, tmp_path):
    (tmp_path / "kohya.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_toml(tmp_path / "kohya.toml")
    assert words in str(caught.value) and "kohya's trainers" in str(caught.value)
