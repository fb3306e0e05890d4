"""Ray accepts unknown keys in a Serve config in silence; here they fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.yamls import unknown_keys
from vmr_ray.config import validated
from vmr_ray.serve.app import Api, Encoder, Ingest, Ranker
from vmr_ray.serve.models import ServeArgs

CONFIGS = sorted((Path(__file__).parents[3] / "serve_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_key_is_known(path: Path):
    config = yaml.safe_load(path.read_text())
    parsed = ServeDeploySchema.model_validate(config).model_dump(warnings=False)
    assert unknown_keys(config, parsed) == []
    for application in config["applications"]:
        assert application["import_path"] == "vmr_ray.serve.app:build"
        args = validated(ServeArgs, application["args"], path.name)
        for deployment in application["deployments"]:
            assert deployment["name"] in {d.name for d in (Api, Encoder, Ranker)}
            assert deployment["autoscaling_config"]["max_replicas"] > 1
        # Without keys nobody else may ask; the index has one writer.
        assert args.auth == "keys" or config["http_options"]["host"] == "127.0.0.1"
        assert Ingest.num_replicas == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_batches_find_a_place_and_can_call_for_every_replica(path: Path):
    """What Encoder and Ranker have ongoing are batches, of which each Api replica lets out a few only."""
    for application in yaml.safe_load(path.read_text())["applications"]:
        out = ServeArgs.model_validate(application["args"]).batches_in_flight
        given = {d["name"]: d for d in application["deployments"]}
        apis = given.get("Api", {}).get("autoscaling_config", {"max_replicas": 1})["max_replicas"]
        for deployment in (Encoder, Ranker):
            own = given.get(deployment.name, {})
            assert own.get("max_ongoing_requests", deployment.max_ongoing_requests) >= out
            if scaling := own.get("autoscaling_config"):
                assert scaling["max_replicas"] * scaling["target_ongoing_requests"] <= apis * out


def test_a_typo_is_found():
    given = {
        "applications": [{"import_path": "a:b", "deployments": [{"name": "x", "max_ongoing_request": 3}]}]
    }
    assert unknown_keys(given, ServeDeploySchema.model_validate(given).model_dump(warnings=False))
