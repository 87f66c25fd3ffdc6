"""Cluster profiles: what is shipped, what is refused and how, and what a cluster doesn't have."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from profiles import CPU, GPU, IMAGE, TEXT, profile
from pydantic import ValidationError

from toolkit.errors import ConfigError, ToolkitError
from toolkit.launch.check import hidden_warnings, load_for, mount_warnings
from toolkit.launch.cluster import load_cluster
from toolkit.pipeline.run import Run, fresh_tasks
from toolkit.pipeline.source import Source
from toolkit.quantities import megabytes, minutes, time_text
from toolkit.share import share

SHIPPED = sorted(p.stem for p in share("configs", "clusters").glob("*.yaml"))
WRONG = """\
scheduler: slurm
partitoin: batch
node: {cpus: 0, gpu_type: h100}
time_limit: 30
network: ib
environment: {RANK: 1, a b: 2, Fine_Name: x}
container: {runtime: pyxis}
"""


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_is_valid(name: str) -> None:
    assert load_cluster(name)[0].scheduler == "slurm"


def test_every_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(WRONG)
    with pytest.raises(ConfigError) as caught:
        load_cluster(str(file))
    lines = [str(p).removeprefix(f"{file}:") for p in caught.value.problems]
    assert [line.split(": ")[:2] for line in lines] == [
        ["2", "partitoin"],
        ["3", "node.cpus"],
        ["4", "time_limit"],
        ["5", "network"],
        ["6", "environment.RANK"],
        ["6", "environment.a b"],
        ["7", "container"],
    ]
    assert "did you mean 'partition'" in lines[0]
    assert "'gke-gib'" in lines[3]


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'lab'"):
        load_cluster("lba")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_limit": "30"}, "4:00:00"),
        ({"node": {"cpus": 1, "gpu_type": "h100"}}, "gpu_type and no gpus"),
        ({"node": {"cpus": 1, "memory": "12"}}, "64G"),
        ({"partition": "a b"}, "without spaces"),
        ({"options": ["-x"]}, "one option of sbatch"),
        ({"options": ["--requeue"]}, "is set by the toolkit"),
        ({"container": {"runtime": "none", "image": "x"}}, "go together"),
        ({"container": IMAGE | {"runtime": "pyxis", "mounts": ["data:/data"]}}, "/CONTAINER"),
        ({"secrets": ["MINE"], "environment": {"MINE": "x"}}, "is given another way"),
        ({"environment": {"WANDB_API_KEY": "x"}}, "WANDB_API_KEY looks like a secret"),
        ({"prolog": ["a\nb"]}, "one line"),
        ({"chain": 3, "submit_with": "submitit"}, "submitit requeues, and has no chains"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        profile(CPU, **changes)


def test_names_keep_their_case_and_win_over_the_preset() -> None:
    cluster = profile(GPU, environment={"NCCL_IB_TIMEOUT": 23, "Mixed_Case": "a b"})
    assert cluster.variables() == {"NCCL_IB_TIMEOUT": "23", "Mixed_Case": "a b"}


def test_the_run_root_takes_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH_OF_TEST", "/fast")
    cluster = profile(CPU, run_root="$SCRATCH_OF_TEST/runs")
    assert cluster.root() == Path("/fast/runs")
    monkeypatch.delenv("SCRATCH_OF_TEST")
    with pytest.raises(ToolkitError, match="SCRATCH_OF_TEST"):
        cluster.root()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4:00:00", 240), ("0:20:30", 21), ("1-12", 2160), ("2-12:30", 3630), ("1-00:00:01", 1441)],
)
def test_time_limits(text: str, expected: int) -> None:
    assert minutes(text) == expected
    assert minutes(time_text(expected)) == expected


@pytest.mark.parametrize("text", ["30", "30:00", "0:00:00", "1:2:3", "-1", "1-", "4h", ""])
def test_what_is_no_time_limit(text: str) -> None:
    with pytest.raises(ValueError, match="time limit"):
        minutes(text)


def test_sizes() -> None:
    assert [megabytes(t) for t in ("512M", "2G", "1T")] == [512, 2048, 1048576]


def problems(folder: Path, resources: str, **changes: Any) -> list[str]:
    file = folder / "pipeline.yaml"
    file.write_text(
        TEXT.replace('{nodes: 2, ntasks_per_node: 8, time_limit: "1-12:00:00"}', resources)
    )
    with pytest.raises(ConfigError) as caught:
        load_for(file, (), profile(GPU, **changes), Source({}))
    found = [p for p in caught.value.problems if not p.key.endswith("global_batch_size")]
    return [f"{p.line} {p.key}: {p.message}" for p in found]


def test_an_array_has_no_chain(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(TEXT.replace("{nodes: 2, ntasks_per_node: 4}", "{nodes: 2, chain: 3}"))
    with pytest.raises(ConfigError, match=r"corpus.resources.chain: a stage whose tasks are an a"):
        load_for(file, (), profile(CPU), Source({}))
    file.write_text(TEXT.replace("vocab_size: 300}", "vocab_size: 300, resources: {chain: 2}}"))
    with pytest.raises(ConfigError, match=r"vocabulary.resources.chain: submitit req") as caught:
        load_for(file, (), profile(CPU, submit_with="submitit"), Source({}))
    assert len(caught.value.problems) == 1
    load_for(file, (), profile(CPU), Source({}))


def test_what_the_cluster_does_not_have_is_told_with_its_line(tmp_path: Path) -> None:
    asked = "{nodes: 4, ntasks_per_node: 16, cpus_per_task: 20, memory_per_node: 3T, "
    found = problems(
        tmp_path, asked + 'time_limit: "2-00:00:00"}', limits={"nodes": 2, "time_limit": "1-00"}
    )
    assert found == [
        "16 stages.base.resources.nodes: 4 nodes, where a job may have 2",
        "16 stages.base.resources.ntasks_per_node: 16 ranks on a node that has 8 GPUs",
        "16 stages.base.resources.cpus_per_task: 16 x 20 cores on a node that has 224",
        "16 stages.base.resources.memory_per_node: 3T on a node that has 2000G",
        "16 stages.base.resources.time_limit: 2-00:00:00, where a job may have 1-00",
    ]


def test_a_profile_s_own_limits_image_and_secrets_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    key = tmp_path / "key"
    key.write_text("x")
    key.chmod(0o644)
    found = problems(
        tmp_path,
        "{nodes: 2, ntasks_per_node: 8}",
        limits={"time_limit": "1:00:00"},
        container=IMAGE | {"runtime": "pyxis", "image": "/no/image.sqsh"},
        secrets=["NO_SUCH_KEY"],
        secret_files={"TOKEN": str(key)},
    )
    assert [line.partition(" ")[2] for line in found] == [
        "time_limit: is above limits.time_limit, 1:00:00",
        "container.image: no such file: /no/image.sqsh",
        "secrets: NO_SUCH_KEY is not set here",
        f"secret_files.TOKEN: {key} has mode 644; chmod 600 it",
    ]


def test_a_folder_to_mount_may_be_on_the_nodes_alone() -> None:
    cluster = profile(CPU, container=IMAGE | {"runtime": "podman", "mounts": ["/no/where:/data"]})
    assert mount_warnings(cluster) == ["container.mounts: /no/where is not on this machine"]


def test_what_a_container_does_not_see_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("words")
    (tmp_path / "p.yaml").write_text(
        "name: p\nstages:\n  v: {kind: train-tokenizer, sources: [data/a.txt], vocab_size: 300}\n"
    )
    data = tmp_path / "data"
    image = {"runtime": "podman", "image": "registry/toolkit:1"}

    def told(*mounts: str, run: Path = tmp_path / "run", **changes: Any) -> list[str]:
        cluster = profile(CPU, container=image | {"mounts": list(mounts)}, **changes)
        loaded = load_for(tmp_path / "p.yaml", (), cluster, Source({}))
        return hidden_warnings(cluster, Run(run, tuple(fresh_tasks(loaded, run))))

    hidden = "is not mounted into the container under its own name"
    assert told() == [f"stages.v: {data}/a.txt {hidden}"]
    assert told(f"{data}:/data") == told()  # the pipeline's paths are those of outside
    assert told(f"{tmp_path}:{tmp_path}:ro") == []
    home = told(f"{data}:{data}", environment={"HF_HOME": str(tmp_path)})
    assert home == [f"environment.HF_HOME: {tmp_path} {hidden}"]
    assert told(run=tmp_path) == []


def test_a_kind_s_resources_stand_where_the_stage_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "name: p\nstages:\n  v: {kind: train-tokenizer, sources: ['sample:python-docs'],"
        " vocab_size: 300}\n"
        "  a: {kind: tokenize, sources: ['sample:python-docs'], tokenizer: v}\n"
        "  b: {kind: tokenize, sources: ['sample:python-docs'], tokenizer: v,"
        " resources: {nodes: 3}}\n"
    )
    text = yaml.safe_dump(CPU | {"resources": {"tokenize": {"nodes": 2, "ntasks_per_node": 99}}})
    (tmp_path / "c.yaml").write_text(text)
    cluster, source = load_cluster(str(tmp_path / "c.yaml"))
    stages = load_for(tmp_path / "p.yaml", (), cluster, source).pipeline.stages
    assert [(s.resources.nodes, s.resources.ntasks_per_node) for s in stages.values()] == [
        (1, None),
        (2, 99),
        (3, 99),
    ]


def test_resources_of_an_unknown_kind_are_told(tmp_path: Path) -> None:
    text = yaml.safe_dump(CPU | {"resources": {"tokenise": {"nodes": 2}}})
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"resources: .*'tokenise'.*tokenize"):
        load_cluster(str(tmp_path / "c.yaml"))


def test_a_secret_s_value_in_place_of_its_name_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CPU | {"secrets": ["KEY=swordfish"]}))
    with pytest.raises(ConfigError, match=r"secrets.0: must be a variable's name") as caught:
        load_cluster(str(tmp_path / "c.yaml"))
    assert "swordfish" not in str(caught.value)


def test_a_wrong_key_of_a_kind_s_resources_is_told_with_the_right_one(tmp_path: Path) -> None:
    wrong = {"resources": {"pretrain": {"ntasks_per_nod": 2}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CPU | wrong))
    with pytest.raises(ConfigError, match="did you mean 'ntasks_per_node'"):
        load_cluster(str(tmp_path / "c.yaml"))
