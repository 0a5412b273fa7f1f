import json

import pytest

from crackvae import config
from crackvae.config import Config
from crackvae.errors import ConfigError, ExitCode


def load(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "my config.toml"
    path.write_text(text, encoding=encoding)
    return config.load(path)


def refusal(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'my config.toml'}: ")
    assert "\n" not in message
    return message


def test_an_empty_file_is_the_default_recipe(tmp_path):
    assert load(tmp_path, "") == Config()
    assert Config().changes() == {}


def test_what_a_file_leaves_out_stays_as_in_the_recipe(tmp_path):
    loaded = load(
        tmp_path,
        "[training]\nepochs = 3\nkl_weight = 0\n[network]\nchannels = [8, 16, 32, 64]\n",
    )
    assert loaded.changes() == {
        "network.channels": (8, 16, 32, 64),
        "training.epochs": 3,
        "training.kl_weight": 0.0,
    }
    assert loaded.training.batch_size == Config().training.batch_size


def test_the_reference_recipe_is_what_it_was(tmp_path):
    reference = load(tmp_path, 'recipe = "reference"')
    assert (reference.image.tiling, reference.scoring.score, reference.network.likelihood) == ("resize", "mse", "mse")
    assert (reference.network.channels, reference.network.latent) == ((32, 64, 128, 256), 128)
    assert (reference.training.kl_weight, reference.training.epochs, reference.image.tile_size) == (1e-5, 10, 128)
    assert reference == Config(recipe="reference")


def test_a_score_asks_for_its_tiling(tmp_path):
    assert load(tmp_path, "[scoring]\nscore = 'mse'").tiling == "resize"
    assert load(tmp_path, "[scoring]\nscore = 'lines'").tiling == "native"
    assert load(tmp_path, "").tiling == "auto"
    decided = load(tmp_path, "").with_tiling("native")
    assert (decided.image.tiling, decided.scoring.score) == ("native", "lines")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[image]\ntiling = 'native'\n[scoring]\nscore = 'mse'", "'mse' needs image.tiling 'resize'"),
        ("[image]\ntiling = 'resize'\n[scoring]\nscore = 'lines'", "'lines' needs image.tiling 'native'"),
        ("[image]\ntiling = 'native'\n[network]\nlikelihood = 'mse'", "needs network.likelihood 'gaussian'"),
    ],
)
def test_values_at_odds_are_refused_with_both(tmp_path, text, told):
    message = refusal(tmp_path, text)
    assert told in message
    assert "{" not in message


def test_a_value_that_equals_the_recipes_is_no_change(tmp_path):
    assert load(tmp_path, "[scoring]\nalpha = 0.05\n").changes() == {}


def test_a_file_from_a_windows_editor_is_read(tmp_path):
    assert load(tmp_path, "[training]\r\nepochs = 3\r\n", "utf-8-sig").training.epochs == 3


def test_the_config_of_an_artifact_comes_back_from_json(tmp_path):
    written = load(tmp_path, "[training]\nlearning_rate = 1e-4\n[image]\ntile_size = 64\n")
    assert config.parse(json.loads(json.dumps(written.model_dump(mode="json"))), "x") == written


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().training.epochs = 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[image]\ntile_sise = 64", "unknown key 'image.tile_sise'; did you mean 'tile_size'?"),
        ("[imaeg]\ntile_size = 64", "unknown key 'imaeg'; did you mean 'image'?"),
        ("[scoring]\nzzz = 1", "unknown key 'scoring.zzz'; known here: score, batch_size"),
        ('[training]\n"a\\nb" = 1', r"unknown key 'training.a\nb'"),
        ("[image]\ntile_size = 100", "image.tile_size = 100: Input should be a multiple of 16"),
        ("[image]\ntile_size = 1024", "image.tile_size = 1024: Input should be less than"),
        ("[training]\nepochs = 0", "training.epochs = 0: Input should be greater than 0"),
        ("[training]\nepochs = true", "training.epochs = True: Input should be a valid integer"),
        ('[training]\nepochs = "10"', "training.epochs = '10': Input should be a valid integer"),
        ("[training]\nepochs = 1.5", "training.epochs = 1.5: "),
        ("[training]\nlearning_rate = inf", "training.learning_rate = inf: "),
        ("[training]\nlearning_rate = nan", "training.learning_rate = nan: "),
        ("[training]\nseed = 4294967296", "training.seed = 4294967296: "),
        ("[scoring]\nalpha = 1", "scoring.alpha = 1: "),
        ("[network]\nchannels = [1, 2, 3]", "network.channels.3 = [1, 2, 3]: Field required"),
        ('[network]\nchannels = [1, 2, 3, "4"]', "network.channels.3 = '4': "),
        ('[training]\nprecision = "fp16"', "'auto', 'fp32' or 'bf16'"),
        ("image = 3", "image = 3: "),
        ("[image", "is not valid TOML: "),
        ("[image]\n[image]", "is not valid TOML: "),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_the_field_and_the_cure(tmp_path, text, told):
    assert told in refusal(tmp_path, text)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "photo.toml"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ConfigError, match=r"photo.toml: cannot be read"):
        config.load(path)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_missing_file_and_a_folder_are_refused_as_bad_input(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        config.load(tmp_path / name)
    assert caught.value.exit_code == ExitCode.INPUT
