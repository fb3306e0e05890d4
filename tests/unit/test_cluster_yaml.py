"""cluster.yaml against Ray's own schema, without a cloud."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

PATH = Path(__file__).parents[2] / "cluster.yaml"
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def test_cluster_yaml_is_what_ray_expects():
    config = yaml.safe_load(PATH.read_text())
    jsonschema.validate(config, SCHEMA)
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types["head"]["resources"] == {"CPU": 0}
    assert all(types[name]["min_workers"] == 0 for name in types if name != "head")


def test_a_typo_is_found():
    config = yaml.safe_load(PATH.read_text())
    config["idle_timeout_minute"] = config.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, SCHEMA)
