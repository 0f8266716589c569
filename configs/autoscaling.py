"""`autoscaling` in pool.yaml: which nodes the Ray cluster can start for the pool, and when they are given back."""

from __future__ import annotations

from pydantic import Field, model_validator

from moorage.configs.section import Section
from moorage.scheduling.constraints import Traits
from moorage.scheduling.model import MAX_DEVICES, NodeSpec
from moorage.scheduling.scaling import NodeType


class NodeTypeSettings(Section):
    """What a node of the type has, as Ray's own autoscaler was told it in `available_node_types`."""

    where = "autoscaling"

    devices: int = Field(default=0, ge=0, le=MAX_DEVICES)
    gpu_model: str = ""
    device_mib: int = Field(default=0, ge=0, le=1 << 24)
    cpus: int = Field(default=1, ge=1, le=4096)
    memory_mib: int = Field(default=0, ge=0, le=1 << 30)
    labels: dict[str, str] = Field(default={})
    """Those that jobs select nodes by."""
    spot: bool = False
    min_nodes: int = Field(default=0, ge=0, le=10_000)
    """Idle ones are not given back below this number. It is no order: Ray's `min_workers` keeps them started."""
    max_nodes: int = Field(default=1, ge=1, le=10_000)

    @model_validator(mode="after")
    def _whole(self) -> NodeTypeSettings:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes {self.min_nodes} is above max_nodes {self.max_nodes}")
        if bool(self.devices) != bool(self.gpu_model):
            raise ValueError("a node type has both devices and gpu_model, or neither")
        return self

    def as_type(self, name: str) -> NodeType:
        node = NodeSpec(
            name="",
            gpu_model=self.gpu_model,
            devices=self.devices,
            device_mib=self.device_mib,
            milli_cpu=self.cpus * 1000,
            mib=self.memory_mib,
            traits=Traits.of(dict(self.labels), spot=self.spot),
        )
        return NodeType(name=name, node=node, least=self.min_nodes, most=self.max_nodes)


class AutoscalingSettings(Section):
    """Off while no node type is named."""

    where = "autoscaling"

    node_types: dict[str, NodeTypeSettings] = Field(default={})
    idle_s: int = Field(default=300, ge=0, le=7 * 86_400)
    """A node that nobody has used for so long is given back, while nobody waits for one."""

    def types(self) -> tuple[NodeType, ...]:
        """In the order of the file: a node that could be of several types is of the first."""
        return tuple(one.as_type(name) for name, one in self.node_types.items())
