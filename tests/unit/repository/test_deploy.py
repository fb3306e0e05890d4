"""Every file that starts a cluster or a container, against the schema of the program that reads it."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import boto3
import botocore.validate
import jsonschema
import pytest
import ray
import yaml
from pydantic import ValidationError
from ray._private.runtime_env.packaging import create_package
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import RayActorOptionsSchema, ServeDeploySchema

from tests import yamls
from vmr_ray.cluster import SERVE_PROXY
from vmr_ray.config import validated
from vmr_ray.errors import VmrError
from vmr_ray.serve.models import ServeArgs
from vmr_ray.workflows.reproduce import Recipe

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
VERSION = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
DOOR = "=".join(SERVE_PROXY)  # what Ray Serve's proxies read where their node starts
TAG = re.compile(r"^[\w./-]+:\d+(\.\d+)+(-[\w.-]+)?$")


def tracked(*patterns: str) -> list[str]:
    """The files of the repository, also new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return sorted(name for name in names if name and (ROOT / name).exists())


def read(name: str) -> Any:
    return yamls.load((ROOT / name).read_text())


def check_image(image: str) -> None:
    assert TAG.match(image), f"{image} must be pinned"
    if image.startswith("rayproject/ray:"):
        assert image.startswith(f"rayproject/ray:{VERSION}-py311-"), image


def check_cluster(config: Any) -> None:
    """A config of `ray up`: Ray's schema, and what it does not check."""
    jsonschema.validate(config, SCHEMA)
    kind = config["provider"]["type"]
    yamls.PROVIDERS[kind].model_validate(config["provider"])
    # The jobs API runs arbitrary code, so it must need SSH and the token.
    options = config["docker"]["run_options"]
    assert "-e RAY_AUTH_MODE=token" in options
    path = next(o.partition("RAY_AUTH_TOKEN_PATH=")[2] for o in options if "TOKEN_PATH" in o)
    assert config["file_mounts"][path] == "~/.ray/auth_token"
    assert f"-e {DOOR}" in options
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start and "--autoscaling-config=" in start
    # What pip needs to install the package is mounted, and nothing else.
    mounted = {local for remote, local in config["file_mounts"].items() if remote != path}
    assert all((ROOT / local).exists() for local in mounted)
    assert mounted == {"vmr_ray", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    images = [config["docker"]["image"]]
    for name, node in config.get("available_node_types", {}).items():
        images += [node["docker"]["worker_image"]] if "docker" in node else []
        if kind == "aws":
            check_instance(node["node_config"])
        else:
            yamls.ComputeInstance.model_validate(node["node_config"])
        if name == config["head_node_type"]:
            assert node["resources"] == {"CPU": 0}
            assert "SPOT" not in json.dumps(node).upper()
        else:
            assert 0 == node["min_workers"] <= node["max_workers"] <= config["max_workers"]
            assert "SPOT" in json.dumps(node).upper()
    for image in images:
        check_image(image)
    if kind == "local":  # there are no node types: Ray asks the machines
        assert "--num-cpus=0" in start
    else:
        assert config["head_node_type"] in config["available_node_types"]
        assert 0 < config["idle_timeout_minutes"] <= 15


def check_instance(node: Any) -> None:
    """`node_config` is what EC2's RunInstances takes, as botocore describes it."""
    shape = boto3.client("ec2", "us-west-2").meta.service_model.operation_model("RunInstances").input_shape
    request = {**node, "MinCount": 1, "MaxCount": 1}
    report = botocore.validate.ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    assert node["MetadataOptions"] == {"HttpTokens": "required"}
    assert "IamInstanceProfile" in node and all(d["Ebs"]["Encrypted"] for d in node["BlockDeviceMappings"])


def check_serve(config: Any) -> None:
    """A config of `serve deploy`, in which Ray silently accepts unknown keys."""
    parsed = ServeDeploySchema.model_validate(config).model_dump(warnings=False)
    assert yamls.unknown_keys(config, parsed) == []
    for application in config["applications"]:
        module, _, name = application["import_path"].partition(":")
        assert callable(getattr(import_module(module), name))
        validated(ServeArgs, application["args"], "args")
        for deployment in application["deployments"]:
            # For the schema above these are mappings with any keys.
            for key, model in (
                ("autoscaling_config", AutoscalingConfig),
                ("ray_actor_options", RayActorOptionsSchema),
            ):
                options = deployment.get(key, {})
                parsed_options = model.model_validate(options).model_dump(warnings=False)
                assert yamls.unknown_keys(options, parsed_options) == []


def check_recipe(config: Any) -> None:
    validated(Recipe, config, "recipe")


def check_ray_cluster(config: Any) -> None:
    check_pods(yamls.RayCluster.model_validate(config).spec)


def check_ray_job(config: Any) -> None:
    spec = yamls.RayJob.model_validate(config).spec
    check_pods(spec.rayClusterSpec)
    python, script, *_ = shlex.split(spec.entrypoint)
    assert python == "python" and (ROOT / script.removeprefix("/home/ray/vmr-ray/")).is_file()
    for container in spec.submitterPodTemplate.spec.containers:
        check_image(container.image)


def check_ray_service(config: Any) -> None:
    spec = yamls.RayService.model_validate(config).spec
    check_pods(spec.rayClusterConfig)
    serve = yamls.load(spec.serveConfigV2)
    check_serve(serve)
    # It is a copy of the cluster's config, except that the API keys come from a secret.
    wanted = copy.deepcopy(read("serve_configs/cluster.yaml"))
    del wanted["applications"][0]["args"]["key_file"]
    assert serve == wanted
    for container in spec.rayClusterConfig.containers():
        assert "VMR_API_KEYS" in {env.name for env in container.env}
        assert container.image.startswith("registry.example.com/vmr-ray:")  # deploy/Dockerfile, with the door


def check_pods(spec: yamls.ClusterSpec) -> None:
    assert spec.rayVersion == VERSION
    assert spec.headGroupSpec.rayStartParams["num-cpus"] == "0"
    names = [group.groupName for group in spec.workerGroupSpecs]
    assert len(set(names)) == len(names)
    for container in spec.containers():
        check_image(container.image)
        assert container.securityContext is not None


# Which check a file gets; a file that matches no pattern, or two, fails.
KINDS: dict[str, Callable[[Any], None]] = {
    r"(deploy/(gcp|onprem)/)?cluster\.yaml": check_cluster,
    r"deploy/kuberay/raycluster\.yaml": check_ray_cluster,
    r"deploy/kuberay/rayjob\.yaml": check_ray_job,
    r"deploy/kuberay/rayservice\.yaml": check_ray_service,
    r"serve_configs/\w+\.yaml": check_serve,
    r"configs/\w+\.yaml": check_recipe,
}


def check_of(name: str) -> Callable[[Any], None]:
    (check,) = [check for pattern, check in KINDS.items() if re.fullmatch(pattern, name)]
    return check


@pytest.mark.parametrize("name", tracked("*.yaml", "*.yml"))
def test_every_yaml_is_what_its_reader_expects(name: str):
    check_of(name)(read(name))


def test_no_kind_is_without_a_file():
    names = tracked("*.yaml", "*.yml")
    assert all(any(re.fullmatch(pattern, name) for name in names) for pattern in KINDS)


REFUSED = (AssertionError, AttributeError, KeyError, ValidationError, VmrError, jsonschema.ValidationError)


@pytest.mark.parametrize(
    ("name", "was", "becomes"),
    [
        ("cluster.yaml", "idle_timeout_minutes:", "idle_timeout_minute:"),
        ("cluster.yaml", "cache_stopped_nodes:", "cache_stoped_nodes:"),
        ("cluster.yaml", "InstanceMarketOptions:", "InstanceMarketOption:"),
        ("cluster.yaml", "{HttpTokens: required}", "{HttpTokens: optional}"),
        ("cluster.yaml", "head_node_type: head", "head_node_type: heads"),
        ("cluster.yaml", "max_workers: 16", "max_workers: 21"),
        ("cluster.yaml", "resources: {CPU: 0}", "resources: {}"),
        ("cluster.yaml", "ray:2.60.0-py311-cpu", "ray:latest"),
        ("cluster.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
        ("cluster.yaml", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
        ("cluster.yaml", "serve.door.middlewares", "serve.doors.middlewares"),
        ("cluster.yaml", "/home/ray/auth_token: ~", "/home/ray/token: ~"),
        ("cluster.yaml", "LICENSE: LICENSE", "LICENSE: LICENCE"),
        ("deploy/gcp/cluster.yaml", "provisioningModel", "provisioning"),
        ("deploy/gcp/cluster.yaml", "us-central1-a", "us-central2-a"),
        ("deploy/onprem/cluster.yaml", "worker_ips", "workers_ips"),
        ("deploy/kuberay/raycluster.yaml", "maxReplicas: 16", "maxReplica: 16"),
        ("deploy/kuberay/raycluster.yaml", "minReplicas: 0", "minReplicas: 1"),
        ("deploy/kuberay/raycluster.yaml", "limits: {memory: 8Gi}", "limits: {cpu: '2'}"),
        ("deploy/kuberay/rayjob.yaml", "jobs/pipeline.py", "jobs/pipelin.py"),
        ("deploy/kuberay/rayjob.yaml", "2.60.0", "2.59.0"),
        ("deploy/kuberay/rayservice.yaml", "serve.app:build", "serve.app:built"),
        ("deploy/kuberay/rayservice.yaml", "registry.example.com/", "registry.example.org/"),
        ("deploy/kuberay/rayservice.yaml", "max_queued_requests", "max_queued_request"),
        ("serve_configs/local.yaml", "target_ongoing_requests", "target_requests"),
    ],
)
def test_a_slip_is_found(name: str, was: str, becomes: str):
    text = (ROOT / name).read_text()
    assert was in text
    with pytest.raises(REFUSED):
        check_of(name)(yamls.load(text.replace(was, becomes)))


def test_a_duplicate_key_is_found():
    with pytest.raises(yaml.YAMLError, match="twice in one mapping: a"):
        yamls.load("a: 1\nb: 2\na: 3\n")
    assert yamls.load("x: &x {a: 1}\ny: {<<: *x, a: 2}") == {"x": {"a": 1}, "y": {"a": 2}}


# --- Dockerfiles ---


def instructions(text: str) -> list[tuple[str, str]]:
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = lines.replace("\\\n", " ")
    return [
        (word.upper(), rest.strip()) for word, _, rest in (x.partition(" ") for x in joined.split("\n") if x)
    ]


def complaints(text: str) -> list[str]:
    """The mistakes that hadolint reports of base, apt, users, ADD and COPY; and a missing health check."""
    mistakes, arguments, user = [], {}, "root"
    steps = instructions(text)
    for word, rest in steps:
        if word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
        elif word == "FROM":
            image = re.sub(r"\$\{(\w+)\}", lambda m: arguments.get(m[1], ""), rest.split(" ")[0])
            if not TAG.match(image):
                mistakes.append(f"FROM {image} is not pinned")
        elif word == "ADD":
            mistakes.append("COPY, not ADD")
        elif word == "COPY" and "--from" not in rest:
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            mistakes += [f"{source} does not exist" for source in sources if not (ROOT / source).exists()]
        elif word == "USER":
            user = rest
        elif word == "RUN" and "apt-get install" in rest:
            if "--no-install-recommends" not in rest or "rm -rf /var/lib/apt/lists/*" not in rest:
                mistakes.append("apt-get install needs --no-install-recommends and a removal of its lists")
        elif word == "RUN" and "pip install" in rest and "--no-cache-dir" not in rest:
            mistakes.append("pip install needs --no-cache-dir")
        elif word == "RUN" and "sudo" in rest:
            mistakes.append("no sudo")
    if user in ("root", "0"):
        mistakes.append("it runs as root")
    pip = [rest for word, rest in steps if word == "RUN" and "pip install" in rest]
    if not all("-c constraints.txt" in rest or "--no-deps" in rest for rest in pip):
        mistakes.append("dependencies without constraints.txt")
    if "HEALTHCHECK" not in dict(steps):
        mistakes.append("no HEALTHCHECK")
    return mistakes


@pytest.mark.parametrize("name", tracked("*Dockerfile*"))
def test_dockerfiles(name: str):
    text = (ROOT / name).read_text()
    assert complaints(text) == []
    base = dict(instructions(text))["ARG"].partition("=")[2]
    check_image(base)
    assert dict(instructions(text))["ENV"] == DOOR


@pytest.mark.parametrize(
    ("was", "becomes", "complaint"),
    [
        ("2.60.0-py311-cpu\nFROM", "latest\nFROM", "not pinned"),
        ("USER 1000", "USER root", "runs as root"),
        ("COPY --chown=1000:100 jobs jobs", "COPY job jobs", "job does not exist"),
        ("COPY --chown=1000:100 jobs jobs", "ADD https://example.com/jobs jobs", "not ADD"),
        ("-c constraints.txt ", "", "without constraints"),
        ("HEALTHCHECK", "LABEL", "no HEALTHCHECK"),
        ("EXPOSE 8000", "RUN apt-get install -y ffmpeg", "--no-install-recommends"),
    ],
)
def test_a_slip_in_the_dockerfile_is_found(was: str, becomes: str, complaint: str):
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    assert was in text
    assert any(complaint in mistake for mistake in complaints(text.replace(was, becomes)))


def test_the_builder_gets_what_is_copied():
    """.dockerignore lets exactly this pass."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = set()
    for word, rest in instructions((ROOT / "deploy" / "Dockerfile").read_text()):
        if word == "COPY":
            copied |= set([part for part in rest.split() if not part.startswith("--")][:-1])
    assert allowed == copied


# --- What `ray job submit --working-dir .` uploads ---


def test_jobs_take_the_project_along_and_nothing_else(tmp_path: Path):
    """Ray packs a copy of the repository in which someone has worked."""
    project = tmp_path / "project"
    for name in tracked():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    untracked = [
        ".git/HEAD",
        ".venv/bin/python",
        "demo/index/x.lance",
        "features/x",
        "run/best/model.safetensors",
    ]
    untracked += ["build/lib/x.py", "bench-media/x.mp4", "videos/x.MP4", "x.mkv", "vmr_ray/__pycache__/x.pyc"]
    untracked += [".hypothesis/x", "report/x.png", "index/x", "run-2/x"]
    for name in untracked:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(b"x" * 1000)
    package = tmp_path / "package.zip"
    create_package(str(project), package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        packed = {name for name in archive.namelist() if not name.endswith("/")}
    assert packed == {name for name in tracked() if not name.startswith(("docs/", "tests/"))}
    assert (
        package.stat().st_size < 5_000_000
    )  # of which the tables of `everyday` and `everyday-multilingual` take 3.6 MB
