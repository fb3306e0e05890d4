"""`ray up cluster.yaml` as far as it goes without a cloud account.

EC2 and IAM are moto's, on loopback. Where Ray would reach the machine, `ssh` and `rsync` write down what
their arguments: only the machine itself is missing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from tests import moto

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SSH = """#!/bin/sh
for last; do :; done
printf '%s\\n' "$last" >> "$RECORD/commands"
case "$last" in
  *"command -v docker"*) echo /usr/bin/docker ;;
  *".Config.Env"*) echo '["HOME=/home/ray"]' ;;
  *"printenv HOME"*) echo /home/ray ;;
  *"/proc/meminfo"*) echo "MemAvailable: 16000000 kB" ;;
esac
"""
RSYNC = """#!/bin/sh
for last; do before=$source; source=$last; done
printf 'rsync %s\\n' "${last##*:}" >> "$RECORD/commands"
case "$last" in *ray_bootstrap_config.yaml) cp "$before" "$RECORD/bootstrap.yaml" ;; esac
"""


@pytest.fixture
def account(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An AWS account with the roles of docs/cluster.md, as the environment of its user."""
    tools, home = tmp_path / "bin", tmp_path / "home"
    tools.mkdir()
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("secret")
    for name, script in (("ssh", SSH), ("rsync", RSYNC)):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    with moto.server() as port:
        env = {
            **os.environ,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "HOME": str(home),
            "TMPDIR": str(tmp_path),
            "RECORD": str(tmp_path),
            "PATH": f"{tools}:{os.environ['PATH']}",
        }
        iam, policies = client("iam", env), ROOT / "deploy" / "aws"
        for role, names in {
            "vmr-ray-head": ["bucket", "autoscaler"],
            "vmr-ray-worker": ["bucket"],
        }.items():
            iam.create_role(RoleName=role, AssumeRolePolicyDocument=(policies / "trust.json").read_text())
            for name in names:
                document = (policies / f"{name}.json").read_text()
                iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=document)
            iam.create_instance_profile(InstanceProfileName=role)
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
        yield env


def client(service: str, env: dict[str, str]) -> Any:
    return boto3.client(
        service,
        "us-west-2",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )


def ray(env: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [BIN / "ray", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def running(env: dict[str, str]) -> list[dict[str, Any]]:
    states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    found = client("ec2", env).describe_instances(Filters=states)["Reservations"]
    return [instance for reservation in found for instance in reservation["Instances"]]


def test_up_and_down(account: dict[str, str], tmp_path: Path) -> None:
    ray(account, "up", "-y", "--no-config-cache", "cluster.yaml")
    (head,) = running(account)
    assert head["InstanceType"] == "m6i.xlarge" and "InstanceLifecycle" not in head
    assert head["IamInstanceProfile"]["Arn"].endswith("/vmr-ray-head")
    assert head["MetadataOptions"]["HttpTokens"] == "required"
    assert {"Key": "ray-node-type", "Value": "head"} in head["Tags"]
    # From outside only SSH; everything else among the cluster's own machines.
    groups = [group["GroupId"] for group in head["SecurityGroups"]]
    rules = client("ec2", account).describe_security_groups(GroupIds=groups)["SecurityGroups"]
    open_to_all = [
        (rule["FromPort"], rule["ToPort"]) for g in rules for rule in g["IpPermissions"] if rule["IpRanges"]
    ]
    assert open_to_all == [(22, 22)]

    # The head gets the token and the package, then starts Ray in the pinned container.
    commands = (tmp_path / "commands").read_text()
    steps = [
        r"rsync /tmp/ray_tmp_mount/vmr-ray/home/ray/auth_token",
        r"rsync /tmp/ray_tmp_mount/vmr-ray/home/ray/vmr-ray/vmr_ray",
        r"usermod -aG docker",
        r"docker pull rayproject/ray:[\d.]+-py311-cpu\b",
        r"docker run .*:/home/ray/auth_token .*-e RAY_AUTH_MODE=token -e RAY_AUTH_TOKEN_PATH=/home",
        r"docker exec .*pip install .*-c /tmp/vmr-ray/constraints.txt /tmp/vmr-ray",
        r'RAY_OVERRIDE_RESOURCES=.*"CPU":0.*ray start --head .*--dashboard-host=127.0.0.1',
    ]
    places = []
    for step in steps:
        found = re.search(step, commands)
        assert found, (step, commands)
        places.append(found.start())
    assert places == sorted(places)

    # What the head was given to start workers with, given to Ray's own provider as the autoscaler does.
    config = yaml.safe_load((tmp_path / "bootstrap.yaml").read_text())
    found_out = {name: node["resources"] for name, node in config["available_node_types"].items()}
    assert found_out["cpu_worker"]["CPU"] == 16
    assert (found_out["gpu_worker"]["CPU"], found_out["gpu_worker"]["GPU"]) == (4, 1)
    code = """
import sys, yaml
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.tags import TAG_RAY_NODE_KIND
config = yaml.safe_load(open(sys.argv[1]))
provider = _get_node_provider(config["provider"], config["cluster_name"])
for name in ("cpu_worker", "gpu_worker"):
    node = config["available_node_types"][name]["node_config"]
    provider.create_node(node, {TAG_RAY_NODE_KIND: "worker"}, 1)
"""
    command = [sys.executable, "-c", code, tmp_path / "bootstrap.yaml"]
    subprocess.run(command, env=account, check=True, capture_output=True, timeout=120)
    workers = [instance for instance in running(account) if instance["InstanceId"] != head["InstanceId"]]
    assert sorted(w["InstanceType"] for w in workers) == ["c6i.4xlarge", "g5.xlarge"]
    assert all(w["InstanceLifecycle"] == "spot" for w in workers)
    assert all(w["IamInstanceProfile"]["Arn"].endswith("/vmr-ray-worker") for w in workers)

    ray(account, "down", "-y", "cluster.yaml")
    assert running(account) == []
