"""The values that requests and responses hold, as OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    *(
        "ConfigurationBody",
        "ConfigurationView",
        "EncodedImages",
        "Health",
        "ImageAnswer",
        "InferBody",
        "InferResponse",
    ),
    *("InputTensor", "ModelMetadata", "OutputTensor", "Prediction", "RollbackAnswer", "RollbackBody"),
    *("ServerMetadata", "SnapshotList", "SnapshotView", "StreamList", "StreamView", "TensorMetadata"),
]

STREAM = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$"
MANY = 4096  # dimensions, outputs and other lists that are short
Parameter = bool | int | float | str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Open(BaseModel):
    """What other clients of the protocol may extend; types are strict, further fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Health(BaseModel):
    """Whether the server lives, or is ready."""

    live: bool | None = None
    ready: bool | None = None


class ServerMetadata(BaseModel):
    """Metadata of the server (Open Inference Protocol)."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """Name, type and shape of a tensor; -1 for a dimension of any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """Metadata of a model (Open Inference Protocol)."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, Parameter]


class InputTensor(_Open):
    """An input: its data as JSON, flat or nested, or as bytes behind the JSON (binary tensor extension)."""

    name: str = Field(examples=["input"])
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=16)] = Field(
        examples=[[1, 3, 32, 32]]
    )
    datatype: str = Field(description="FP32, FP64; FP16 and BF16 as bytes only", examples=["FP32"])
    parameters: dict[str, Any] = Field(default_factory=dict, description="binary_data_size: number of bytes")
    data: list[Any] | None = Field(None, description="numbers, row by row, flat or nested")


class RequestedOutput(_Open):
    """An output that is asked for."""

    name: str = Field(examples=["logits"])
    parameters: dict[str, Any] = Field(default_factory=dict, description="binary_data: true for bytes")


class InferBody(_Open):
    """A request for an inference (Open Inference Protocol)."""

    id: str | None = Field(None, max_length=256)
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="stream: identity of the stream (default); deadline: seconds; learn: whether the model adapts (true); "
        "binary_data_output: whether outputs are bytes (false)",
    )
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=MANY)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=MANY)] | None = None


class OutputTensor(BaseModel):
    """An output. A logit, confidence or score that is not a number (of a refused sample) is null in JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Parameter] | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """The answer to an inference (Open Inference Protocol)."""

    model_name: str
    id: str | None = None
    parameters: dict[str, Parameter] = Field(
        description="stream; learned: whether the state moved; adapted: false where the answer is of the last state; serving: "
        "whose answer it is (adapter, bn, source); offset: samples of the stream before; state: hash of the state"
    )
    outputs: list[OutputTensor]


class EncodedImages(_Strict):
    """Several images, each a PNG or JPEG file in base64."""

    images: Annotated[list[str], Field(min_length=1, max_length=65536)]


class Prediction(BaseModel):
    """The answer to one image."""

    predicted: int | None = Field(description="index of the class; null where the image was refused")
    confidence: float | None = Field(description="highest probability")
    score: float | None = Field(description="open-set score, higher for the unknown")
    refused: str | None = Field(description="why the image was refused; null where it was answered")
    quarantined: str | None = Field(
        description="why the image was answered and not learned from; null otherwise"
    )
    logits: list[float | None]


class ImageAnswer(BaseModel):
    """The answer to images of a stream."""

    model: str
    stream: str
    predictions: list[Prediction]
    learned: bool = Field(description="whether the state of the stream moved")
    adapted: bool = Field(
        description="false where the answer is of the last state: paused, or to keep the deadline"
    )
    serving: Literal["adapter", "bn", "source"] = Field(description="whose answer it is")
    skipped: str = Field(
        description="why nothing was learned: deadline, paused, asked, audit; empty otherwise"
    )
    offset: int = Field(description="number of samples of the stream before this request")
    state: str = Field(description="hash of the state after the request")


class SnapshotView(BaseModel):
    """A snapshot of the state of a stream."""

    number: int
    offset: int = Field(description="number of samples of the stream before it")
    step: int
    time: float = Field(description="seconds since 1970")
    bytes: int
    checksum: str = Field(description="SHA-256 of tensors and description")
    healthy: bool = Field(
        description="whether guards undid nothing and the shipped model answered at most half since the one before"
    )
    state: str = Field(description="hash of the state")
    configuration: str = Field(description="hash of the configuration that it belongs to")


class SnapshotList(BaseModel):
    """Snapshots of a stream, the oldest first."""

    stream: str
    snapshots: list[SnapshotView]


class RollbackBody(_Strict):
    """The state to return to."""

    to: Annotated[int, Field(ge=0)] | None = Field(
        description="number of a snapshot; null: the shipped model", examples=[3]
    )


class RollbackAnswer(BaseModel):
    """The state after a rollback; the snapshot is null where it is the shipped model's."""

    stream: str
    snapshot: SnapshotView | None


class AlarmView(BaseModel):
    """The alarm on shadow traffic: the answers that are served have a higher risk than the shipped model's."""

    raised: bool = Field(
        description="whether it was raised since it was cleared by a rollback or a configuration"
    )
    samples: int = Field(description="number of samples that the shipped model answered too")
    evidence: float = Field(
        description="evidence against a risk within the tolerance; raised at 1 / probability"
    )
    time: float | None = Field(description="when it was raised, in seconds since 1970")
    probability: float = Field(description="probability, at most, of a false alarm in the whole stream")
    tolerance: float = Field(description="excess of the risk that is tolerated, as a share of the samples")
    share: float = Field(description="share of the requests that are shadow traffic")


class StreamView(BaseModel):
    """The status of a stream."""

    stream: str
    offset: int = Field(description="number of samples so far")
    step: int = Field(description="number of steps so far")
    paused: bool = Field(description="whether learning is off")
    serving: str = Field(description="whose answer the last request got: adapter, bn or source")
    state: str = Field(description="hash of the state")
    configuration: str = Field(description="hash of the configuration")
    counts: dict[str, int] = Field(description="requests, and samples by what became of them")
    snapshots: int = Field(description="number of snapshots")
    snapshot: int | None = Field(description="number of the last snapshot")
    snapshot_offset: int | None = Field(description="its offset")
    pending: int = Field(description="samples that are learned later")
    bytes: int = Field(description="size of the state in memory")
    error: str = Field(description="last failure of a snapshot or of the audit log; empty if there is none")
    diagnostics: dict[str, float | None] = Field(description="estimates of the last step; null where unknown")
    alarm: AlarmView | None = Field(description="the alarm on shadow traffic; null where there is none")


class StreamList(BaseModel):
    """The streams of the server."""

    streams: list[str]
    found: int = Field(description="number of streams whose identity contains the text")
    total: int = Field(description="number of all streams")


class ConfigurationBody(_Strict):
    """How the model adapts from now on."""

    method: str = Field(max_length=100, examples=["tent"])
    options: dict[str, Any] = Field(
        default_factory=dict,
        max_length=100,
        examples=[{"optimizer": {"function": "adam", "with": {"lr": 0.001}}}],
    )
    guarded: bool = True


class ConfigurationView(BaseModel):
    """How the model adapts."""

    method: str
    options: dict[str, Any]
    guarded: bool
    changes: int = Field(description="number of changes since the server began")
