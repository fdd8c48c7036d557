"""Settings: files of secrets, a `.env` file, the environment `SPECNORM_*`, or the flags of the command line, in rising order of weight."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

SECRETS = Path("/run/secrets")
"""Where Docker and Kubernetes put files of secrets: one named `specnorm_database_password` is that setting."""


class Settings(BaseSettings):
    """Every setting with its default and meaning; read once, at the composition root."""

    model_config = SettingsConfigDict(
        env_prefix="SPECNORM_",
        env_file=".env",
        env_ignore_empty=True,
        secrets_dir=SECRETS if SECRETS.is_dir() else None,
        extra="ignore",
        frozen=True,
    )

    workspace: Path = Field(default=Path("workspace"), description="Folder of the database and the stored files.")
    database_url: SecretStr | None = Field(
        default=None,
        description="PostgreSQL, not SQLite: `postgresql+psycopg://user:password@host/name`; needs the extra `postgres`.",
    )
    blobs_url: str | None = Field(
        default=None, description="Bucket of stored files instead of a folder: `s3://bucket/prefix`; needs the extra `s3`."
    )
    database_password: SecretStr | None = Field(default=None, description="Password of the database, where its URL names none.")
    s3_access_key_id: SecretStr | None = Field(default=None, description="Key of the bucket, instead of `AWS_ACCESS_KEY_ID`.")
    s3_secret_access_key: SecretStr | None = Field(default=None, description="Its secret, instead of `AWS_SECRET_ACCESS_KEY`.")
    quota_bytes: int = Field(default=0, ge=0, description="Most bytes that stored files may take, past it 507; 0 = as the disk allows.")
    keep_versions: int = Field(
        default=0, ge=0, description="Versions of each model that are kept, the newest ones, beside those in use; 0 = all."
    )
    keep_days: float = Field(default=0.0, ge=0, description="Days after which a version that is not in use is removed; 0 = never.")
    tidy_seconds: float = Field(default=3600.0, gt=0, description="Time between removals of old versions and of unnamed stored files.")
    demo_bundle: Path | None = Field(
        default=None, description="Folder of a bundle that `specnorm serve` publishes in a workspace without models."
    )
    demo_name: str = Field(default="digits", description="The name of that model.")
    host: str = Field(default="127.0.0.1", description="Address to bind. Without keys it must be a loopback address.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to bind.")
    grpc_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of the protocol's gRPC side, on the same address; needs the extra `grpc`."
    )
    processes: int = Field(
        default=1, ge=1, le=64, description="Serving processes on the one port; a parent starts them, and starts again what dies."
    )
    worker: Literal["local", "none"] = Field(
        default="local", description="Where fine-tune jobs run: child processes of this service, or elsewhere (`specnorm worker`)."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device of ONNX Runtime; `cuda` fails at load where it is not had."
    )
    threads: int = Field(default=0, ge=0, description="Threads of one ONNX Runtime session; 0 = its process's share of the CPUs.")
    max_batch_rows: int = Field(default=256, ge=1, description="Most rows that requests are collected into for one run.")
    queue_rows: int = Field(default=16384, ge=1, description="Most rows that may wait for one version; past it 429.")
    loaded_versions: int = Field(default=4, ge=0, description="Versions that are not live and stay loaded once they were asked for.")
    request_timeout: float = Field(default=30.0, gt=0, description="Seconds after which a waiting request is answered 503.")
    max_json_bytes: int = Field(default=16 * 2**20, ge=1, description="Largest JSON body of an inference request.")
    max_binary_bytes: int = Field(default=64 * 2**20, ge=1, description="Largest body of an inference request with binary tensors.")
    max_upload_bytes: int = Field(default=512 * 2**20, ge=1, description="Largest data set that can be uploaded.")
    lease_seconds: float = Field(default=30.0, gt=0, description="A job whose worker shows no life for so long is taken over.")
    job_max_attempts: int = Field(default=5, ge=1, description="How often a job is started before it is given up as lost.")
    job_max_seconds: float = Field(
        default=6 * 3600.0, gt=0, description="Longest time that a job may be worked at, all attempts together; one may ask for less."
    )
    job_max_bytes: int = Field(default=8 * 2**30, ge=2**28, description="Most memory of one fine-tune job; past it the job fails.")
    jobs_at_once: int = Field(default=1, ge=1, le=64, description="Fine-tune jobs that this process runs side by side.")
    max_open_jobs: int = Field(default=1000, ge=1, description="Fine-tune jobs that may wait or run; past it 429.")
    import_seconds: float = Field(default=180.0, gt=0, description="Longest time that judging a model from elsewhere may take.")
    job_threads: int = Field(default=1, ge=1, description="Threads of one fine-tune job.")
    api_keys_file: Path | None = Field(
        default=None, description="File of hashed keys (`specnorm keys create`); without it keys are not asked for."
    )
    trust_published_loopback: bool = Field(
        default=False, description="Allow 0.0.0.0 without keys inside a container whose port is published on the host's loopback only."
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=("localhost", "127.0.0.1", "[::1]"), description="`Host` names that are served where no keys are set."
    )
    metrics_public: bool = Field(default=False, description="Serve /metrics without a key.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severe log line that is written.")
    log_format: Literal["json", "text"] = Field(default="text", description="One JSON object a line, or text for people.")
    drain_seconds: float = Field(default=20.0, ge=0, description="Grace for requests in flight at shutdown.")
