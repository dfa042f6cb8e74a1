"""`SAEConfig` refuses what cannot work, by name, before anything is allocated."""

import json

import pytest
from dictionaries import as_in_production, config_of

from hfsae.errors import HfsaeWarning, InvalidType, InvalidValue
from hfsae.sae.architectures import ARCHITECTURES
from hfsae.sae.config import SAEConfig

BAD = [
    ({"architecture": "topkk"}, InvalidValue, "Did you mean 'topk'"),
    ({"architecture": None}, InvalidType, "architecture=None is of type NoneType"),
    ({"d_in": 0}, InvalidValue, "d_in=0 is out of range"),
    ({"d_in": -3}, InvalidValue, "d_in=-3 is out of range"),
    ({"d_in": True}, InvalidType, "d_in=True is of type bool"),
    ({"d_in": 12.0}, InvalidType, "d_in=12.0 is of type float"),
    ({"d_in": "12"}, InvalidType, "d_in='12' is of type str"),
    ({"d_in": None}, InvalidType, "d_in=None"),
    ({"d_sae": 10**12}, InvalidValue, "d_sae=1000000000000 is out of range"),
    ({"d_sae": 10**5000}, InvalidValue, "d_sae=an integer of 16610 bits"),
    ({"d_sae": 2**26, "d_in": 2**26}, InvalidValue, "No dictionary is that large"),
    ({"d_out": 0, "b_pre": "none"}, InvalidValue, "d_out=0"),
    ({"k": 0}, InvalidValue, "k=0 is out of range"),
    ({"k": -1}, InvalidValue, "k=-1 is out of range"),
    ({"k": 58}, InvalidValue, "k=58 is out of range. There are only d_sae=57"),
    ({"k": float("nan")}, InvalidType, "k=nan is of type float"),
    ({"k": None}, InvalidValue, "k=None does not fit 'topk'"),
    ({"dtype": "load"}, InvalidValue, "dtype='load' is unknown"),
    ({"dtype": "float8"}, InvalidValue, "Known: bfloat16, float16, float32, float64"),
    ({"b_pre": True}, InvalidType, "b_pre=True"),
    ({"normalize": "batch"}, InvalidValue, "normalize='batch' is unknown"),
    ({"normalize": "scale"}, InvalidValue, "normalize='scale' with scale=None do not fit"),
    ({"scale": 2.0}, InvalidValue, "normalize='none' with scale=2.0 do not fit"),
    ({"normalize": "scale", "scale": 0.0}, InvalidValue, "scale=0.0 is out of range"),
    ({"normalize": "scale", "scale": float("inf")}, InvalidValue, "scale=inf is out of range"),
    ({"normalize": "scale", "scale": True}, InvalidType, "scale=True is of type bool"),
    ({"normalize": "layer_norm", "d_in": 1}, InvalidValue, "divides by no variance"),
    ({"norm_outlier": float("nan")}, InvalidValue, "norm_outlier=nan is out of range"),
    ({"layer": -1}, InvalidValue, "layer=-1 is out of range"),
    ({"layer": 1.5}, InvalidType, "layer=1.5"),
    ({"site": ""}, InvalidValue, "site='' is no name"),
    ({"site": 3}, InvalidType, "site=3"),
    ({"module": "a\nb"}, InvalidValue, "is no name"),
    ({"base_model": "x" * 50_000}, InvalidValue, "base_model='xxx"),
    ({"skip": 1}, InvalidType, "skip=1 is of type int"),
    ({"skip": True}, InvalidValue, "Only a transcoder can skip"),
    ({"exclude_special_tokens": None}, InvalidType, "exclude_special_tokens=None"),
    ({"d_out": 20}, InvalidValue, r"b_pre='tied' subtracts b_dec \[20\] from x \[12\]"),
    ({"group_sizes": (7, 50)}, InvalidValue, "Only 'matryoshka' has groups"),
    ({"group_sizes": [7, 50]}, InvalidType, "a tuple of integers"),
    ({"training": 3}, InvalidType, "training=3"),
    ({"io": "both"}, InvalidValue, "io='both' is unknown"),
]


@pytest.mark.parametrize(
    ("fields", "error", "message"), BAD, ids=["-".join(row[0]) + str(i) for i, row in enumerate(BAD)]
)
def test_a_field_that_cannot_work_is_named(fields, error, message):
    with as_in_production(), pytest.raises(error, match=message):
        SAEConfig(**(config_of("topk").to_dict() | fields))


def test_matching_pursuit_cannot_transcode():
    with pytest.raises(InvalidValue, match="'matching_pursuit' cannot be a transcoder"):
        config_of("matching_pursuit", d_out=20, b_pre="none")


def test_group_sizes_sum_to_the_width():
    assert config_of("matryoshka", group_sizes=(7, 50)).group_sizes == (7, 50)
    with pytest.raises(InvalidValue, match="group_sizes sum to 10"):
        config_of("matryoshka", group_sizes=(3, 7))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_config_survives_json(architecture):
    groups = (7, 50) if architecture == "matryoshka" else None
    config = config_of(architecture, group_sizes=groups, site="mlp_out", layer=3, training={"tokens": 5, "data": ["a"]})
    assert SAEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(SAEConfig.from_dict(config.to_dict()))


def test_unknown_fields_warn_by_name_and_missing_ones_raise():
    values = config_of("topk").to_dict()
    with pytest.warns(HfsaeWarning, match="Unknown config fields are ignored: auto_map, device"):
        assert SAEConfig.from_dict(values | {"device": "cuda", "auto_map": {}}) == config_of("topk")
    del values["d_sae"]
    with pytest.raises(InvalidValue, match="The config has no 'd_sae'"):
        SAEConfig.from_dict(values)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"site": "resid_post", "layer": 8}, "resid_post.layer_8"),
        ({"site": "resid_post", "layer": 8, "stack": "encoder"}, "encoder.resid_post.layer_8"),
        ({"module": "transformer.h.8.mlp"}, "transformer.h.8.mlp"),
        ({"module": "transformer.h.8.mlp", "io": "input"}, "transformer.h.8.mlp.input"),
        ({"module": "../../etc"}, "_.._etc"),
        ({}, "dictionary"),
        (
            {"site": "mlp_in", "layer": 2, "write_site": "mlp_out", "write_layer": 2, "b_pre": "none"},
            "mlp_in.layer_2.to.mlp_out.layer_2",
        ),
    ],
)
def test_the_place_is_a_folder_name(fields, place):
    assert config_of("topk", **fields).place == place
