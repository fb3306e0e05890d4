"""Reading YAML more strictly than the programs it is for: duplicate and unknown keys are errors here."""

from __future__ import annotations

from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice in one mapping, of which PyYAML silently keeps the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(
                None, None, f"key twice in one mapping: {', '.join(sorted(twice))}", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load(text: str) -> Any:
    """One YAML document."""
    return yaml.load(text, _Loader)


def unknown_keys(config: object, parsed: object, prefix: str = "") -> list[str]:
    """Keys of `config` that are missing in what a schema made of it: those it does not know."""
    if isinstance(config, dict) and isinstance(parsed, dict):
        lost = [f"{prefix}{key}" for key in config if key not in parsed]
        return lost + [
            name
            for key in config
            if key in parsed
            for name in unknown_keys(config[key], parsed[key], f"{prefix}{key}.")
        ]
    if isinstance(config, list) and isinstance(parsed, list):
        return [name for a, b in zip(config, parsed, strict=True) for name in unknown_keys(a, b, prefix)]
    return []


# --- Kubernetes: the fields that our files use, of the KubeRay API v1 (1.5.1) and of pods. ---


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Quantities = dict[Literal["cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"], str]


class Resources(Strict):
    requests: Quantities
    limits: Quantities

    @model_validator(mode="after")
    def _has_limits(self) -> Resources:
        assert "memory" in self.limits, "a container without a memory limit can take the memory of others"
        assert all(self.requests[k] == v for k, v in self.limits.items() if k in self.requests)
        return self


class Capabilities(Strict):
    drop: list[str]


class SecurityContext(Strict):
    runAsNonRoot: Literal[True]  # noqa: N815
    runAsUser: int = Field(gt=0)  # noqa: N815
    allowPrivilegeEscalation: Literal[False]  # noqa: N815
    capabilities: Capabilities


class SecretKeyRef(Strict):
    name: str
    key: str


class ValueFrom(Strict):
    secretKeyRef: SecretKeyRef  # noqa: N815


class Env(Strict):
    name: str
    valueFrom: ValueFrom  # noqa: N815


class Port(Strict):
    name: str
    containerPort: int  # noqa: N815


class Container(Strict):
    name: str
    image: str
    securityContext: SecurityContext | None = None  # noqa: N815
    env: list[Env] = []
    ports: list[Port] = []
    resources: Resources


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"]


class PodSpec(Strict):
    serviceAccountName: str | None = None  # noqa: N815
    restartPolicy: Literal["Never"]  # noqa: N815
    tolerations: list[Toleration] = []
    containers: list[Container] = Field(min_length=1)


class PodTemplate(Strict):
    spec: PodSpec


class AuthOptions(Strict):
    mode: Literal["token"]


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: int  # noqa: N815
    resources: Resources | None = None


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP"]  # noqa: N815  (not reachable from outside)
    rayStartParams: dict[str, str]  # noqa: N815
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: str  # noqa: N815
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)  # noqa: N815
    maxReplicas: int  # noqa: N815
    rayStartParams: dict[str, str]  # noqa: N815
    template: PodTemplate

    @model_validator(mode="after")
    def _in_order(self) -> WorkerGroup:
        assert self.minReplicas <= self.replicas <= self.maxReplicas
        return self


class ClusterSpec(Strict):
    rayVersion: str  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    enableInTreeAutoscaling: Literal[True]  # noqa: N815
    autoscalerOptions: AutoscalerOptions  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup] = Field(min_length=1)  # noqa: N815

    def containers(self) -> list[Container]:
        groups = [self.headGroupSpec, *self.workerGroupSpecs]
        return [container for group in groups for container in group.template.spec.containers]


class JobSpec(Strict):
    entrypoint: str
    entrypointNumCpus: float | int  # noqa: N815
    backoffLimit: int = Field(ge=0)  # noqa: N815
    shutdownAfterJobFinishes: Literal[True]  # noqa: N815
    ttlSecondsAfterFinished: int = Field(ge=0)  # noqa: N815
    submitterPodTemplate: PodTemplate  # noqa: N815
    rayClusterSpec: ClusterSpec  # noqa: N815


class UpgradeStrategy(Strict):
    type: Literal["NewCluster", "None"]


class ServiceSpec(Strict):
    upgradeStrategy: UpgradeStrategy  # noqa: N815
    serveConfigV2: str  # noqa: N815
    rayClusterConfig: ClusterSpec  # noqa: N815


class Metadata(Strict):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec


# --- Google Cloud: the fields that our file uses, of provider and `instances.insert`. ---


class InitializeParams(Strict):
    diskSizeGb: int  # noqa: N815
    sourceImage: str  # noqa: N815


class Disk(Strict):
    boot: Literal[True]
    autoDelete: Literal[True]  # noqa: N815
    type: Literal["PERSISTENT"]
    initializeParams: InitializeParams  # noqa: N815


class ServiceAccount(Strict):
    email: str
    scopes: list[str]


class Scheduling(Strict):
    provisioningModel: Literal["SPOT", "STANDARD"]  # noqa: N815
    onHostMaintenance: Literal["TERMINATE"] | None = None  # noqa: N815


class Accelerator(Strict):
    acceleratorType: str  # noqa: N815
    acceleratorCount: int  # noqa: N815


class ComputeInstance(Strict):
    machineType: str  # noqa: N815
    disks: list[Disk]
    serviceAccounts: list[ServiceAccount]  # noqa: N815
    guestAccelerators: list[Accelerator] = []  # noqa: N815
    scheduling: list[Scheduling] = []  # Ray's own form: a list


# --- What `ray up` reads below `provider`, where Ray's own schema allows any key. ---


class AwsProvider(Strict):
    type: Literal["aws"]
    region: str
    availability_zone: str
    cache_stopped_nodes: bool

    @model_validator(mode="after")
    def _zones_of_the_region(self) -> AwsProvider:
        assert all(zone.startswith(self.region) for zone in self.availability_zone.split(","))
        return self


class GcpProvider(Strict):
    type: Literal["gcp"]
    region: str
    availability_zone: str
    project_id: str

    @model_validator(mode="after")
    def _zone_of_the_region(self) -> GcpProvider:
        assert self.availability_zone.startswith(self.region)
        return self


class LocalProvider(Strict):
    type: Literal["local"]
    head_ip: str
    worker_ips: list[str]


PROVIDERS: dict[str, type[Strict]] = {"aws": AwsProvider, "gcp": GcpProvider, "local": LocalProvider}
